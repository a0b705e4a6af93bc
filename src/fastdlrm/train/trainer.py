"""The training loop: steps, records, evaluations, checkpoints, resume.

Invariants: everything a step depends on is in the checkpoint, so a resumed run takes the very steps
an uninterrupted one would; a record or checkpoint is written only after a whole step.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgspec
import torch
from torch import Tensor

from fastdlrm.checkpoint import store
from fastdlrm.checkpoint.saver import Saver
from fastdlrm.config import to_tree
from fastdlrm.data.dataset import Dataset
from fastdlrm.data.loader import Loader
from fastdlrm.errors import CheckpointError, DataError
from fastdlrm.metrics.values import MetricValues, is_better
from fastdlrm.parallel.prediction import compare
from fastdlrm.parallel.tensor_shard import TensorShard
from fastdlrm.parallel.world import ALONE, World
from fastdlrm.train.device import resolve_device
from fastdlrm.train.dims import describe_mixed_dims
from fastdlrm.train.evaluate import evaluate
from fastdlrm.train.loop import Clock, LoopState, Progress, TrainResult
from fastdlrm.train.matmul import settle
from fastdlrm.train.memory import describe, describe_compression, memory_plan, require_memory
from fastdlrm.train.mllog import SILENT, Mllog, described
from fastdlrm.train.records import Records
from fastdlrm.train.run import Run
from fastdlrm.train.schedule import learning_rate
from fastdlrm.train.sharding import Sharding, rank_memory, sharded_tables
from fastdlrm.train.step import TrainStep
from fastdlrm.train.stop import StopRequest

RANDOM_STATES: dict[str, Callable[[Tensor], None]] = {
    "cpu": torch.set_rng_state,
    "cuda": torch.cuda.set_rng_state,
}

T = TypeVar("T")

STEPS_TO_AGREE = 8
"""Steps between two looks of all ranks at whether a signal asks any of them to stop."""


class Trainer:
    """One run, from its last checkpoint (or the start) to its end.

    Args:
        run: The run's folder.
        dataset: With a train split, and a validation split if anything is to be evaluated.
        on_progress: Called after every step, on the first rank.
        on_message: Called with each line worth telling, on the first rank.
        on_evaluation: Called after each evaluation with the steps done and its metrics, on the
            first rank; True ends the training there, as a signal does.
        world: This rank and the others.
        sharding: Where the tables lie; None where all of them lie in this process.
        mllog: Told of epochs and evaluations, on the first rank.
    """

    def __init__(
        self,
        run: Run,
        dataset: Dataset,
        on_progress: Callable[[Progress], None] = lambda progress: None,
        on_message: Callable[[str], None] = lambda message: None,
        *,
        on_evaluation: Callable[[int, MetricValues], bool] = lambda step, values: False,
        world: World = ALONE,
        sharding: Sharding | None = None,
        mllog: Mllog = SILENT,
    ) -> None:
        self.run = run
        self._sharding = sharding
        self._mllog = mllog
        self._world = world
        if not self._world.is_first:
            on_progress, on_message = (lambda progress: None), (lambda message: None)
        self._config = run.recipe.train
        self._device = resolve_device(self._config.device)
        self._on_progress = on_progress
        self._on_message = on_message
        self._on_evaluation = on_evaluation
        self._is_ended = False
        self._train = dataset.split("train")
        self._validation = (
            dataset.split("validation") if "validation" in dataset.manifest.splits else None
        )
        self._loader = Loader(
            self._train,
            self._config.global_batch_size,
            seed=run.recipe.seed,
            block_rows=self._config.shuffle_block_rows,
            rank=self._world.rank,
            world_size=self._world.size,
            pin=self._device.type == "cuda",
        )
        self._world.on_each(self._require_memory)
        if line := self._world.on_first(self._settle):
            on_message(line)
        if not self._world.is_first:
            self._settle()  # as the first rank chose
        # Each rank drops its own activations.
        torch.manual_seed(run.recipe.seed + self._world.rank)
        tables = None
        if sharding is not None:
            tables = sharded_tables(run, sharding.plan, self._world, self._device)
        model = run.build_model(self._device, tables).train()
        self._step = TrainStep(model, self._config, self._world)
        if self._device.type == "cuda":
            on_message(self._graph_line())
        self._state = LoopState()
        self._window_loss = torch.zeros((), device=self._device)
        self._clock = Clock()
        self._saved: dict[str, Any] = {}
        self._saver = None
        if self._world.size > 1 or self._device.type == "cuda":
            self._saver = Saver(run.checkpoints, self._config.keep_checkpoints, self._world)
        self._restore()
        self._records = Records(run.folder, self._state.step) if self._world.is_first else None

    def _require_memory(self) -> None:
        """Say what this rank will hold, and refuse what does not fit."""
        run, world, manifest = self.run, self._world, self.run.manifest
        if self._sharding is None:
            items = memory_plan(run.recipe, manifest.schema, manifest.encoding, self._device)
        else:
            items = rank_memory(self._sharding.prediction, world.rank, self._device)
        self._on_message(describe(items))
        for tell in (describe_mixed_dims, describe_compression):
            for line in tell(run.recipe, manifest.schema, manifest.encoding):
                self._on_message(line)
        require_memory(items, self._device, world.local_size)

    def _settle(self) -> str:
        return settle(self.run.folder, self._device, self._config.precision)

    def _graph_line(self) -> str:
        """Whether steps are replayed as one CUDA graph, or why not."""
        why = self._step.why_no_graph
        features = self.run.manifest.schema.sparse
        if not why and any(feature.bag or feature.is_weighted for feature in features):
            why = "bags vary in size from batch to batch"
        return f"no CUDA graph: {why}" if why else "steps are replayed as one CUDA graph"

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run, unless it stops early."""
        steps = self._config.num_epochs * self._loader.num_batches
        return min(steps, self._config.max_steps) if self._config.max_steps else steps

    def train(self) -> TrainResult:
        """Run to the end, to an early stop, or to a signal; always leaves a checkpoint."""
        rows = 0 if self._validation is None else len(self._validation)
        self._mllog.run_start(described(self.run.recipe, len(self._train), rows))
        with StopRequest() as stop:
            try:
                is_stopped = False
                while not self._is_done() and not is_stopped:
                    is_stopped = self._epoch(stop)
                if self._is_done() and self._state.window_steps:
                    self._record_training()
                self._save()
                if self._saver is not None:
                    self._saver.wait()
                self._compare()
            finally:
                self._mllog.run_stop(self._has_reached_target(), self._epochs_done())
                self._step.close()
                if self._records is not None:
                    self._records.close()
        return TrainResult(
            run=str(self.run.folder),
            step=self._state.step,
            is_finished=self._is_done(),
            stopped_early=self._is_out_of_patience(),
            reached_target=self._has_reached_target(),
            best_step=self._state.best_step,
            validation=self._state.validation,
            samples_per_s=self._clock.samples_per_s,
            data_wait_share=self._clock.data_wait_share,
        )

    def start_from(self, fill: Callable[[TrainStep], T]) -> T:
        """Leave a checkpoint before the first step, of numbers from elsewhere, and end.

        Args:
            fill: Lays them into the `state_tensors` of model and optimizers.

        Returns:
            What `fill` returns.
        """
        try:
            filled = fill(self._step)
            self._step.dense_optimizer.refresh()
            self._save()
            if self._saver is not None:
                self._saver.wait()
        finally:
            self._step.close()
            if self._records is not None:
                self._records.close()
        return filled

    def _compare(self) -> None:
        """Say how the run compares with what was predicted."""
        if self._sharding is None or not self._clock.samples_per_s:
            return
        most = None
        if self._device.type == "cuda":
            most = max(self._world.gather(torch.cuda.max_memory_allocated(self._device)))
        rate = self._clock.samples_per_s
        self._on_message(compare(self._sharding.prediction, rate, most))

    def _epoch(self, stop: StopRequest) -> bool:
        """Steps until the epoch, the run or the process is to end; whether a signal ended it."""
        state = self._state
        batches = self._loader.epoch(state.epoch, state.batch)
        self._mllog.epoch_start(state.epoch)
        self._block_start()
        try:
            self._clock.start()
            for batch in batches:
                self._clock.has_data()
                num_samples = self._loader.size(state.batch)
                self._window_loss += self._step(batch, state.step, num_samples)
                self._advance()
                self._clock.has_stepped(num_samples)
                self._after_step()
                self._clock.start()
                if self._must_stop(stop):
                    return True
                if self._is_done() or state.batch == 0:
                    return False
        finally:
            batches.close()
            self._mllog.epoch_stop()
        return False

    def _must_stop(self, stop: StopRequest) -> bool:
        """Whether an evaluation or a signal asks for the end: on a signal the ranks agree now and
        then.
        """
        if self._is_ended:
            return True
        is_due = self._world.size == 1 or self._state.step % STEPS_TO_AGREE == 0
        return is_due and self._world.any(stop.requested)

    def _advance(self) -> None:
        state = self._state
        state.step += 1
        state.window_steps += 1
        state.batch += 1
        if state.batch == self._loader.num_batches:
            state.epoch, state.batch = state.epoch + 1, 0

    def _after_step(self) -> None:
        """Whatever is due: a record, an evaluation, a checkpoint, the display."""
        state, config = self._state, self._config
        loss = None
        if state.step % config.log_every_steps == 0:
            loss = self._record_training()
        every = config.evaluate_every_steps
        due = state.step % every == 0 if every else state.batch == 0
        if self._validation is not None and (due or state.step == self.total_steps):
            self._evaluate()
        if config.checkpoint_every_steps and state.step % config.checkpoint_every_steps == 0:
            self._save()
        self._on_progress(
            Progress(
                step=state.step,
                total_steps=self.total_steps,
                epoch=state.epoch,
                samples_per_s=self._clock.samples_per_s,
                data_wait_share=self._clock.data_wait_share,
                loss=loss,
            )
        )

    def _record_training(self) -> float:
        state = self._state
        self._world.all_reduce(self._window_loss).wait()
        loss = float(self._window_loss) / state.window_steps
        with self._world.alike():
            if loss != loss:
                raise DataError(
                    f"training loss is NaN at step {state.step}; lower the learning rates or set "
                    "train.gradient_clip_norm"
                )
        config = self._config
        base = config.dense_optimizer.learning_rate
        rate = learning_rate(config.schedule, base, state.step - 1)
        if self._records is not None:
            self._records.add(
                state.step,
                "train",
                {"loss": loss, "epoch": state.epoch, "dense_learning_rate": rate},
                {
                    "samples_per_s": self._clock.samples_per_s,
                    "data_wait_share": self._clock.data_wait_share,
                },
            )
        self._window_loss.zero_()
        state.window_steps = 0
        return loss

    def _evaluate(self) -> None:
        """Evaluate on validation, keep the best, count towards early stopping."""
        assert self._validation is not None
        state, metric = self._state, self._config.best_metric
        began, done = time.perf_counter_ns(), self._epochs_done()
        self._mllog.eval_start(done)
        model = self._step.model
        values = evaluate(
            model, self._validation, self._config.eval_batch_size, self._device, self._world
        )
        seconds = (time.perf_counter_ns() - began) / 1e9
        state.validation = values
        value = getattr(values, metric)
        self._mllog.eval_stop(done, value)
        if value is not None and is_better(metric, value, state.best_value):
            state.best_value, state.best_step = value, state.step
            state.evaluations_since_best = 0
        else:
            state.evaluations_since_best += 1
        if self._records is not None:
            self._records.add(
                state.step, "validation", msgspec.to_builtins(values), {"evaluation_s": seconds}
            )
        shown = "undefined (one class only)" if value is None else f"{value:.5f}"
        is_best = " (best)" if state.best_step == state.step else ""
        self._on_message(f"step {state.step}: validation {metric} {shown}{is_best}")
        self._save()
        self._is_ended = self._world.on_first(lambda: self._on_evaluation(state.step, values))
        if state.batch and not self._is_done():
            self._block_start()

    def _is_out_of_patience(self) -> bool:
        patience = self._config.early_stop_patience
        return bool(patience) and self._state.evaluations_since_best >= patience

    def _has_reached_target(self) -> bool:
        best, target = self._state.best_value, self._config.target_metric_value
        if best is None or target is None:
            return False
        return not is_better(self._config.best_metric, target, best)

    def _is_done(self) -> bool:
        is_at_end = self._state.step >= self.total_steps
        return is_at_end or self._is_out_of_patience() or self._has_reached_target()

    def _epochs_done(self) -> float:
        share = self._config.global_batch_size / len(self._train)
        return self._state.epoch + self._state.batch * share

    def _block_start(self) -> None:
        every = self._config.evaluate_every_steps
        planned = every * self._config.global_batch_size / len(self._train) if every else 1.0
        self._mllog.block_start(self._epochs_done(), planned)

    def _save(self) -> None:
        """Write a checkpoint of this state, unless it is written already; delete old ones.

        A single process that computes on the CPU writes at once; else a copy is written while
        training goes on.
        """
        state = msgspec.to_builtins(self._state)
        if state == self._saved:
            return
        config, tensors = to_tree(self.run.recipe), self._tensors()
        tensors["loop"] = self._loop_tensors()
        step, best = self._state.step, self._state.best_step
        if self._saver is None:
            store.save(self.run.checkpoints, step, tensors, state, config)
            store.prune(self.run.checkpoints, self._config.keep_checkpoints, best)
        else:
            self._saver.save(step, tensors, state, config, best=best)
        self._saved = state

    def _tensors(self) -> dict[str, Mapping[str, Tensor | TensorShard]]:
        """All live tensors of this rank that a step depends on, by group."""
        return {
            "model": self._step.model.state_tensors(),
            "sparse_optimizer": self._step.sparse_optimizer.state_tensors(),
            "dense_optimizer": self._step.dense_optimizer.state_tensors(),
        }

    def _loop_tensors(self) -> dict[str, Tensor]:
        """What each rank has of its own: losses since the last record, and its random state."""
        own = {"window_loss": self._window_loss.cpu(), "random.cpu": torch.get_rng_state()}
        if self._device.type == "cuda":
            own["random.cuda"] = torch.cuda.get_rng_state(self._device)
        return {
            _of_rank(name, rank): tensor
            for rank, of_rank in enumerate(self._world.collect(own))
            for name, tensor in of_rank.items()
        }

    def _restore(self) -> None:
        """Continue from the last checkpoint, if there is one; of any number of ranks."""
        steps = self._world.on_first(lambda: store.steps(self.run.checkpoints))
        if not steps:
            return
        folder = store.folder_of(self.run.checkpoints, steps[-1])
        store.load_into(folder, self._tensors(), world=self._world)
        self._step.dense_optimizer.refresh()
        checkpoint = self._world.on_each(lambda: store.load(folder, ("loop",)))
        loop = checkpoint.tensors["loop"]
        losses = [tensor for name, tensor in loop.items() if name.startswith("window_loss")]
        if len(losses) == self._world.size:
            self._window_loss.copy_(loop[_of_rank("window_loss", self._world.rank)])
        elif self._world.is_first:
            self._window_loss.copy_(torch.stack(losses).sum())
        for kind, restore in RANDOM_STATES.items():
            name = _of_rank(f"random.{kind}", self._world.rank)
            if name in loop and (kind == "cpu" or self._device.type == "cuda"):
                restore(loop[name])
        try:
            self._state = msgspec.convert(checkpoint.state, type=LoopState)
        except msgspec.ValidationError as problem:
            with self._world.alike():
                raise CheckpointError(f"{folder}: its state is damaged: {problem}") from problem
        self._saved = checkpoint.state
        self._on_message(f"resumed at step {self._state.step} from {folder}")


def _of_rank(name: str, rank: int) -> str:
    """Name in a checkpoint of what a rank has of its own."""
    return f"{name}.{rank}" if rank else name
