"""Weights of a DLRM that another program trained: read, checked, laid into ours; and the way back.

What a file says of the model is its names and shapes: embedding dim, widths, interaction. What it
does not say, such as which row a value has, is the caller's to know.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from fastdlrm.checkpoint.naming import (
    BRANCHES,
    NAMINGS,
    Depths,
    Naming,
    NamingName,
    naming_of,
    without_wrapper,
)
from fastdlrm.checkpoint.parts import (
    FIRST_TOP_WEIGHT,
    columns_of,
    depths_of,
    parts_of,
    tables_in_order,
)
from fastdlrm.checkpoint.pickled import read_pickled
from fastdlrm.contracts.schema import Schema
from fastdlrm.errors import CheckpointError
from fastdlrm.model.config import ModelConfig
from fastdlrm.model.dlrm import DLRM

OTHER_MODELS = {
    "embs": "a table of its own dimension (--md-flag)",
    "proj": "a table of its own dimension (--md-flag)",
    "module": "one rank's part of a model on several (save it from one process)",
}
"""What a part of a key tells of a model that is none of ours."""


@dataclass(frozen=True, slots=True)
class ForeignWeights:
    """The weights in a file of dlrm_s_pytorch or TorchRec.

    Attributes:
        path: The file.
        naming: Whose names it has.
        depths: How many of each part.
        keys: Name in the file by part.
        tensors: By part, as in the file; mapped, not read, where that is possible.
        square_sums: Of an Adagrad that trained them, by part, where the file has them.
    """

    path: Path
    naming: Naming
    depths: Depths
    keys: Mapping[str, str]
    tensors: Mapping[str, Tensor]
    square_sums: Mapping[str, Tensor]

    @classmethod
    def open(cls, path: Path) -> "ForeignWeights":
        """Read a file's names and map its numbers.

        Raises:
            CheckpointError: It is no file of weights, of neither program, or of another model.
        """
        found, square_sums = read_pickled(path)
        originals = without_wrapper(found)
        naming = naming_of(originals)
        if naming is None:
            raise CheckpointError(
                f"{path}: {next(iter(found))!r} is a name of neither program; dlrm_s_pytorch has "
                "emb_l.K.weight, TorchRec's DLRM sparse_arch.embedding_bag_collection..."
            )
        depths = naming.depths(originals)
        keys = naming.names(depths)
        known = set(keys.values())
        for key in (key for key in originals if key not in known):
            raise CheckpointError(f"{path}: {originals[key]!r} {_unknown(key)}")
        for key in (key for key in keys.values() if key not in originals):
            raise CheckpointError(f"{path}: {key!r} is missing; it has {_listed(list(found))}")
        if not (depths.tables and depths.bottom and depths.top):
            raise CheckpointError(
                f"{path}: {len(depths.tables)} tables, {depths.bottom} layers of the bottom and "
                f"{depths.top} of the top MLP; 1 or more of each are needed"
            )
        tensors = {part: found[originals[key]] for part, key in keys.items()}
        for part, tensor in tensors.items():
            num_dims = 1 if part.endswith((".bias", ".pooling_weight")) else 2
            if tensor.dim() != num_dims or not tensor.numel():
                raise CheckpointError(
                    f"{path}: {keys[part]!r} has shape {tuple(tensor.shape)}; {num_dims} "
                    "dimensions of 1 or more are allowed"
                )
        kept = {
            p: square_sums[originals[k]] for p, k in keys.items() if originals[k] in square_sums
        }
        return cls(path, naming, depths, keys, tensors, kept)

    def model_config(self, wanted: ModelConfig, schema: Schema) -> ModelConfig:
        """The shape of the model that these weights are of.

        Args:
            wanted: What does not follow from them is taken from it: dropout, the tables' initial
                distribution, how tables are compressed, and of interactions of one width which it
                is.
            schema: Features to be predicted from.

        Raises:
            CheckpointError: They are of other features, or of no DLRM.
        """
        dim = self.tensors[self._table(0)].shape[1]
        bottom = self._widths("bottom_mlp", self.depths.bottom)
        if bottom[-1] != dim:
            raise CheckpointError(
                f"{self.path}: {self._last('bottom_mlp', self.depths.bottom)!r} gives vectors of "
                f"{bottom[-1]}, {self.keys[self._table(0)]!r} of {dim}; they must be equal"
            )
        self._require_tables(schema)
        changes: dict[str, Any] = {
            "embedding_dim": dim,
            "bottom_mlp": bottom,
            "top_mlp": self._widths("top_mlp", self.depths.top)[:-1],
            "pooling": "sum",
            "table_pooling": {},
            "weighted_pooling": "learned" if self.depths.weighted else "none",
            "norm": "none",
            "include_diagonal": False,
            "num_cross_layers": self.depths.cross,
            "cross_rank": 0,
            "projection_branch1": (),
            "projection_branch2": (),
        }
        changes |= self._interaction(wanted, len(schema.sparse) + 1, dim)
        return msgspec.structs.replace(wanted, **changes)

    def _interaction(self, wanted: ModelConfig, num_vectors: int, dim: int) -> dict[str, Any]:
        """The keys of [model] that say which interaction it is."""
        if self.depths.cross:
            rank = self.tensors["interaction.layers.0.v"].shape[0]
            return {"interaction": "cross", "cross_rank": rank}
        if any(self.depths.branches):
            widths = {
                f"projection_{branch}": self._widths(f"interaction.{branch}", num_layers)
                for branch, num_layers in zip(BRANCHES, self.depths.branches, strict=True)
            }
            return {"interaction": "projection", **widths}
        if self.naming.name == "torchrec":
            return {"interaction": "dot"}
        found = self.tensors[FIRST_TOP_WEIGHT].shape[1]
        V = num_vectors
        widths_of = {
            ("dot", False): dim + math.comb(V, 2),
            ("dot", True): dim + math.comb(V + 1, 2),
            ("cat", False): V * dim,
        }
        fitting = [key for key, width in widths_of.items() if width == found]
        if not fitting:
            raise CheckpointError(
                f"{self.path}: {self.keys[FIRST_TOP_WEIGHT]!r} takes {found} numbers; of {V} "
                f"vectors of {dim} dot makes {widths_of['dot', False]}, with its diagonal "
                f"{widths_of['dot', True]}, cat {widths_of['cat', False]}"
            )
        asked = wanted.interaction, wanted.include_diagonal
        if len(fitting) > 1 and asked not in fitting:
            raise CheckpointError(
                f"{self.path}: {self.keys[FIRST_TOP_WEIGHT]!r} takes {found} numbers, which more "
                f"than one interaction makes: {' or '.join(map(_settings, fitting))}; set one"
            )
        interaction, has_diagonal = fitting[0] if len(fitting) == 1 else asked
        return {"interaction": interaction, "include_diagonal": has_diagonal}

    def require_shapes(self, expected: Mapping[str, Tensor]) -> None:
        """Check every tensor against a model's.

        Args:
            expected: By part, of the model that `model_config` gives; on any device.

        Raises:
            CheckpointError: A shape differs.
        """
        for part in (part for part in self.tensors if part not in expected):
            kind = "plain" if part.count(".") == 1 else "quotient-remainder"
            raise CheckpointError(
                f"{self.path}: {self.keys[part]!r} is of a {kind} table, by the config's "
                "model.compression it is another; set that as the other program had it"
            )
        for part, tensor in self.tensors.items():
            found, wanted = tuple(tensor.shape), tuple(expected[part].shape)
            if found != wanted:
                why = "the widths of the layers before it"
                if part.startswith("tables.") and found[1:] != wanted[1:]:
                    why = f"{self.keys[self._table(0)]!r}: all tables are of one dimension"
                elif part.endswith((".quotient", ".remainder")):
                    why = "the rows of the dataset's table and num_collisions of model.compression"
                elif part.startswith("tables."):
                    why = "the rows of the dataset's table; prepare it as the other program did"
                elif part == "bottom_mlp.0.weight":
                    why = "the dataset's number of dense features"
                raise CheckpointError(
                    f"{self.path}: {self.keys[part]!r} has shape {found}, expected is {wanted} by "
                    f"{why}"
                )

    def copy_into(self, live: Mapping[str, Tensor], columns: Tensor | None) -> None:
        """Lay the numbers into a model.

        Args:
            live: Its tensors by part.
            columns: As `columns_of` gives it.
        """
        for part, tensor in self.tensors.items():
            _lay(part, tensor, live[part], columns)

    def copy_square_sums(self, live: Mapping[str, Tensor], columns: Tensor | None) -> int:
        """Lay what an Adagrad kept into the state of ours, where the shapes are the same.

        Args:
            live: Sums of squares by part, of those whose optimizer keeps them.
            columns: As `columns_of` gives it.

        Returns:
            How many parts have them now.
        """
        same = [
            part
            for part, tensor in self.square_sums.items()
            if part in live and live[part].shape == tensor.shape
        ]
        for part in same:
            _lay(part, self.square_sums[part], live[part], columns)
        return len(same)

    def _require_tables(self, schema: Schema) -> None:
        """Check number, names and weights of the tables."""
        if self.depths.weighted and self.depths.divided:
            first = self.keys[self._table(min(self.depths.divided))]
            raise CheckpointError(
                f"{self.path}: {self.keys['tables.0.pooling_weight']!r} weighs the ids of "
                f"quotient-remainder tables such as {first!r}; here their rows have weights: train "
                "it without --weighted-pooling or without --qr-flag"
            )
        tables = tables_in_order(schema, self.naming.name)
        if len(tables) != len(self.depths.tables):
            last = self.keys[self._table(len(self.depths.tables) - 1)]
            raise CheckpointError(
                f"{self.path}: {len(self.depths.tables)} tables, the last {last!r}; the dataset "
                f"has {len(tables)}, the last {tables[-1] if tables else ''!r}: name its dataset"
            )
        found = [name.removeprefix("t_") for name in self.depths.tables]
        if set(found) == set(tables) and found != tables:
            raise CheckpointError(
                f"{self.path}: tables in the order {_listed(found)}, the dataset's are "
                f"{_listed(tables)}; prepare the features in the file's order"
            )

    def _widths(self, mlp: str, num_layers: int) -> tuple[int, ...]:
        """Outputs of each linear layer."""
        return tuple(self.tensors[f"{mlp}.{k}.weight"].shape[0] for k in range(num_layers))

    def _table(self, k: int) -> str:
        """The first part of the K-th table."""
        return f"tables.{k}.quotient" if k in self.depths.divided else f"tables.{k}"

    def _last(self, mlp: str, num_layers: int) -> str:
        return self.keys[f"{mlp}.{num_layers - 1}.weight"]


def foreign_state(
    model: DLRM, config: ModelConfig, schema: Schema, naming: NamingName
) -> dict[str, Tensor]:
    """A model's weights as another program names them, for its `load_state_dict`.

    The tensors are the model's own, but for a first top layer whose columns are put in order.

    Args:
        model: Its tables are all in this process.
        config: Its shape.
        schema: Its features.
        naming: Whose names.

    Raises:
        CheckpointError: The other program has no such model.
    """
    _require_exportable(config, schema, naming)
    parts = parts_of(model, schema, naming)
    tables = [f"t_{name}" for name in tables_in_order(schema, naming)]
    depths = depths_of(list(parts), tables)
    if naming == "torchrec" and depths.divided:
        raise CheckpointError(
            f"table {tables[min(depths.divided)]!r} is a quotient-remainder table; torchrec has "
            "none: export to reference"
        )
    names = next(n for n in NAMINGS if n.name == naming).names(depths)
    if (columns := columns_of(config, schema, naming)) is not None:
        parts[FIRST_TOP_WEIGHT] = parts[FIRST_TOP_WEIGHT][:, columns.argsort()]
    return {name: parts[part].detach() for part, name in names.items()}


def _require_exportable(config: ModelConfig, schema: Schema, naming: NamingName) -> None:
    """Check that a program of that naming has such a model."""
    kinds = ("dot", "cat") if naming == "reference" else ("dot", "cross", "projection")
    other = {"reference": "torchrec", "torchrec": "reference"}[naming]
    if config.interaction not in kinds:
        raise CheckpointError(
            f"model.interaction is {config.interaction!r}; {naming} has {' and '.join(kinds)}: "
            f"export to {other}"
        )
    for name, dim in config.table_dims.items():
        if dim < config.embedding_dim:
            raise CheckpointError(
                f"table {name!r} has {dim} of {config.embedding_dim} columns (model.table_dims); "
                f"{naming} takes tables of embedding_dim columns alone"
            )
    for table in schema.tables:
        if (rule := config.table_pooling.get(table.name, config.pooling)) != "sum":
            raise CheckpointError(
                f"table {table.name!r}: model.pooling is {rule!r}; {naming} knows 'sum' alone"
            )
    wanted: dict[str, Any] = {"norm": "none"}
    if naming == "torchrec":
        wanted["include_diagonal"] = False
    for key, value in wanted.items():
        if (found := getattr(config, key)) != value:
            raise CheckpointError(f"model.{key} is {found!r}; {naming} knows {value!r} alone")
    if not config.bottom_mlp:
        raise CheckpointError(f"the model has no dense features; {naming} needs 1 or more")
    if naming == "torchrec" and not config.top_mlp:
        raise CheckpointError("model.top_mlp is empty; TorchRec needs 1 hidden layer or more")


@torch.no_grad()
def _lay(part: str, tensor: Tensor, live: Tensor, columns: Tensor | None) -> None:
    """Copy a part of the other program's over one of ours."""
    is_permuted = columns is not None and part == FIRST_TOP_WEIGHT
    live.copy_(tensor[:, columns] if is_permuted else tensor)


def _unknown(key: str) -> str:
    """What is wrong with a key that no model of ours has."""
    for part in key.split("."):
        if part in OTHER_MODELS:
            return f"is of {OTHER_MODELS[part]}, which this model does not have"
    return "has no place in a DLRM of tables and linear layers, or follows on one that is missing"


def _settings(kind: tuple[str, bool]) -> str:
    interaction, has_diagonal = kind
    return f"model.interaction={interaction}" + (
        " with model.include_diagonal=true" if has_diagonal else ""
    )


def _listed(names: list[str]) -> str:
    """Some names and how many there are."""
    return ", ".join(names[:4]) + (f", .. ({len(names)} in all)" if len(names) > 4 else "")
