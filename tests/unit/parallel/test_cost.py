"""The cost model's sums, each worked by hand; W = 2 ranks of B = 2 samples unless said."""

import math

import pytest

from fastdlrm.parallel.cost import CostModel, Load
from fastdlrm.parallel.plan import TablePlan, column_wise, data_parallel, row_wise, table_wise
from fastdlrm.parallel.workload import Feature, Floats
from tests.unit.parallel.machines import MACHINE, WORKLOAD, machine, workload

SEEN_A = 8 * (1 - math.exp(-4 / 8))
"""Different rows among 4 ids on 8 rows."""
SEEN_B = 4 * (1 - math.exp(-8 / 4))
"""Among 8 ids on 4 rows."""


def model(world_size: int = 2) -> CostModel:
    return CostModel(WORKLOAD, MACHINE, world_size)


def whole_tables(of: CostModel) -> Floats:
    """Table a on rank 0, b on rank 1."""
    return of.load("a", table_wise(8, 4, 0)) + of.load("b", table_wise(4, 4, 1))


def test_a_whole_table() -> None:
    load = model().load("b", table_wise(4, 4, 1))
    assert not load[0].any()
    expected = {
        Load.TABLE_BYTES: 4 * 4 * 4,
        Load.STATE_BYTES: 0,
        # 4 samples: 2 ids and a length each
        Load.NUMBERS: 4 * 3,
        Load.SORTED: 8,
        # on a GPU 48 bytes an id, and 8 / 64 bytes a column of it
        Load.PART_BYTES: 8 * (48 + 4 / 8),
        Load.COLUMNS: 4,
        Load.LOOKUPS: 8,
        # 8 rows of 16 B read, 4 vectors of 16 B written; 8 gradients of 16 B read, rows read and
        # written
        Load.MOVED_BYTES: 8 * 16 + 64 + 128 + 2 * 16 * SEEN_B,
        Load.LOOKUP_NS: 8 * (10 + 16) + 64,
        Load.UPDATE_NS: 128 + 2 * (10 + 16) * SEEN_B,
        Load.SHARED_NUMBERS: 0,
        Load.GRADIENT_BYTES: 0,
        Load.GRADIENT_NS: 0,
        Load.CUT: 0,
    }
    assert {kind: load[1, kind] for kind in Load} == pytest.approx(expected)


def test_a_narrow_table_travels_apart_and_shares_no_sums() -> None:
    changes = {"sparse_optimizer": "rowwise_adagrad", "table_dims": {"b": 3}}
    of = CostModel(workload(**changes), MACHINE, 2)
    for plan, rows in ((table_wise(4, 3, 1), 4), (row_wise(4, 3, [0, 1]), 2)):
        load = of.load("b", plan)[1]
        assert load[Load.TABLE_BYTES] == rows * 3 * 4
        assert load[Load.STATE_BYTES] == rows * 4
        assert load[Load.COLUMNS] == 3
        assert load[Load.SHARED_NUMBERS] == 0
        assert load[Load.CUT] == 1


def test_rows_are_shared_and_vectors_are_not() -> None:
    """Each owner sends whole vectors and reads the rows it has."""
    load = model().load("a", row_wise(8, 4, [1, 0]))
    for rank in (0, 1):
        assert load[rank, Load.TABLE_BYTES] == 4 * 16
        # beside bags every feature goes as bags, cut down to the rows of each owner
        assert load[rank, Load.NUMBERS] == pytest.approx(2 + 4)
        assert load[rank, Load.SORTED] == pytest.approx(2)
        assert load[rank, Load.COLUMNS] == 4
        assert load[rank, Load.LOOKUPS] == pytest.approx(2)
        assert load[rank, Load.LOOKUP_NS] == pytest.approx(2 * 26 + 64)


def test_single_ids_go_to_every_owner_of_rows() -> None:
    single = (Feature(table="a"), Feature(table="b"))
    load = CostModel(workload(features=single), MACHINE, 2).load("a", row_wise(8, 4, [1, 0]))
    assert load[:, Load.NUMBERS].tolist() == [4, 4]
    assert load[:, Load.SORTED].tolist() == [4, 4]


def test_frequent_rows_load_the_first_owner() -> None:
    """3 of 4 ids are row 0, 1 of 4 is row 7."""
    skewed = Feature(table="a", shares=(0.75, 0.0, 0.0, 0.25))
    of = CostModel(workload(features=(skewed, WORKLOAD.features[1])), MACHINE, 2)
    load = of.load("a", row_wise(8, 4, [1, 0]))
    assert load[:, Load.LOOKUPS].tolist() == pytest.approx([1, 3])
    # row 0 is seen with 1 - exp(-3)
    seen = (load[1, Load.UPDATE_NS] - 3 * 16) / (2 * 26)
    assert seen == pytest.approx(1 - math.exp(-3))


def test_columns_are_shared() -> None:
    of = CostModel(workload(sparse_optimizer="rowwise_adagrad"), MACHINE, 2)
    load = of.load("a", column_wise(8, 4, [0, 1]))
    for rank in (0, 1):
        assert load[rank, Load.TABLE_BYTES] == 8 * 8
        assert load[rank, Load.STATE_BYTES] == 8 * 4  # each owner keeps each row's number
        assert load[rank, Load.COLUMNS] == 2
        assert load[rank, Load.LOOKUP_NS] == 4 * (10 + 8) + 4 * 8
        assert load[rank, Load.UPDATE_NS] == pytest.approx(4 * 8 + 2 * (10 + 12) * SEEN_A)
        assert load[rank, Load.SHARED_NUMBERS] == pytest.approx(SEEN_A)
        assert load[rank, Load.CUT] == 1
    parts = of.joint_ns(load)
    # 4 bytes a row each way at 2 B/ns
    assert parts["shared"] == pytest.approx(4 * SEEN_A / 2 + 5)
    # ids and vectors of the width of whole rows, and of half of it, travel apart
    assert parts["vectors"] == pytest.approx(2 * 2 * 4 / 2 + 5 + 5)
    assert not model().load("a", column_wise(8, 4, [0, 1]))[:, Load.SHARED_NUMBERS].any()
    assert not of.load("a", column_wise(8, 4, [0]))[:, Load.SHARED_NUMBERS].any()


@pytest.mark.parametrize(("optimizer", "num_shared"), [("adagrad", 1), ("rowwise_adagrad", 2)])
def test_a_pooling_weight_lies_beside_each_part_of_its_row(optimizer: str, num_shared: int) -> None:
    of = CostModel(workload(sparse_optimizer=optimizer, learns_weights=True), MACHINE, 2)
    load = of.load("b", column_wise(4, 4, [1, 0]))
    for rank in (0, 1):
        # 4 rows of 2 numbers and a weight; their state likewise, rowwise one number of each
        assert load[rank, Load.TABLE_BYTES] == 4 * (8 + 4)
        state = 8 + 4 if optimizer == "adagrad" else 4 + 4
        assert load[rank, Load.STATE_BYTES] == 4 * state
        # a part of the weight's gradient, and under rowwise_adagrad of the row's norm
        assert load[rank, Load.SHARED_NUMBERS] == pytest.approx(num_shared * SEEN_B)


def test_a_copy_on_each_rank() -> None:
    load = model().load("b", data_parallel())
    assert (load[0] == load[1]).all()
    # 2 samples of 2 ids
    assert load[0, Load.LOOKUPS] == 4
    assert load[0, Load.LOOKUP_NS] == 4 * 26 + 2 * 16
    assert load[0, Load.GRADIENT_BYTES] == 4 * 16
    # 4 gradients of 16 B read; 4 rows: gradient zeroed, summed, read (48 B), row read and written
    assert load[0, Load.GRADIENT_NS] == 4 * 16 + 4 * (48 + 32)
    assert load[0, Load.NUMBERS] == load[0, Load.COLUMNS] == 0


def test_what_ranks_say_to_each_other() -> None:
    of = model()
    parts = of.joint_ns(whole_tables(of))
    # of half the samples rank 0 gets 2 ids and lengths, rank 1 6 numbers: 24 B at 2 B/ns, and 5 ns
    assert parts["ids"] == 24 / 2 + 5
    # 2 samples of 16 B each way
    assert parts["vectors"] == 32 / 2 + 5
    # 6 weights and a bias; 2 (W - 1) / W = 1 times 28 B at 4 B/ns
    assert parts["top"] == 28 / 4 + 5
    assert parts["rest"] == 4 * 12 / 4 + 5
    assert parts["shared"] == 0
    # a vector of 16 B of each of 2 features and samples, read and written
    assert parts["copies"] == 2 * 4 * 16


def test_a_step_is_its_longest_chain() -> None:
    of = model()
    rank0, rank1 = of.step_ns(whole_tables(of))
    # a sample of the bottom MLP: 16 FLOP at 1000 a ns; 6 numbers written and read: 48 B
    bottom = 2 * (16 / 1e3 + 48)
    # 12 FLOP; 7 numbers twice, 3 vectors of 4 numbers; backward 24 FLOP and 6 vectors
    top, top_back = 2 * (12 / 1e3 + 4 * 26), 2 * (24 / 1e3 + 4 * 38)
    # 19 parameters: 12 bytes each
    ends = 19 * 12 + 1
    # vectors and gradients put into place
    ends += 2 * 128
    # rank 1: lookup, the bottom MLP (longer than 17 + 21 ns of exchanges), the top; then the bottom
    # backward and the update share the device
    update = 128 + 2 * 26 * SEEN_B
    expected = (8 * 26 + 64) + bottom + top + top_back + (bottom + update) + ends
    assert rank1 == pytest.approx(expected)
    update = 64 + 2 * 26 * SEEN_A
    expected = (4 * 26 + 64) + bottom + top + top_back + (bottom + update) + ends
    assert rank0 == pytest.approx(expected)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        # exchanges longer than the bottom MLP: 21 + 21 latencies aside, 1000 ns each
        ({"latency_us": 1.0}, "network"),
        # ids wait for nothing else: a sort longer than the forward pass
        ({"sort_ns": 1e4}, "sort"),
    ],
)
def test_what_holds_a_step_up(changes: dict[str, float], expected: str) -> None:
    of = CostModel(WORKLOAD, machine(**changes), 2)
    loads = whole_tables(of)
    step, fixed = of.step_ns(loads)[1], of.replicated
    ends = fixed.top_backward_ns + 128 + fixed.update_ns + 1
    if expected == "network":
        # forward: ids 1012 and vectors 1016; backward: gradients, top and rest of the all-reduce
        forward = (8 * 26 + 64) + 1012 + 1016 + 128 + fixed.top_forward_ns
        backward = 1016 + (7 + 1000) + (12 + 1000)
    else:
        forward = 17 + 8 * 1e4
        backward = fixed.bottom_backward_ns + loads[1, Load.UPDATE_NS]
    assert step == pytest.approx(forward + backward + ends)


def test_gradients_that_arrive_late_hold_the_update_up() -> None:
    of = CostModel(WORKLOAD, machine(exchange_gb_s=0.1), 2)
    fixed = of.replicated
    # ids 24 B and vectors 32 B at 0.1 B/ns, 5 ns each
    ids, vectors = 245, 325
    forward = (8 * 26 + 64) + ids + vectors + 128 + fixed.top_forward_ns
    tail = vectors + 128 + 2 * 26 * SEEN_B
    expected = forward + fixed.top_backward_ns + 128 + tail + fixed.update_ns + 1
    assert of.step_ns(whole_tables(of))[1] == pytest.approx(expected)


def test_copies_are_updated_when_their_gradients_are_summed() -> None:
    of = CostModel(WORKLOAD, machine(reduce_gb_s=0.1), 2)
    fixed = of.replicated
    loads = of.load("a", table_wise(8, 4, 0)) + of.load("b", data_parallel())
    # rank 1 holds b alone. ids and vectors are shorter than the bottom MLP; after its backward pass
    # 48 B of it and 64 B of b are summed at 0.1 B/ns, then b is updated
    forward = (4 * 26 + 32) + fixed.bottom_forward_ns + 128 + fixed.top_forward_ns
    tail = fixed.bottom_backward_ns + (112 / 0.1 + 5) + (4 * 16 + 4 * 80)
    expected = forward + fixed.top_backward_ns + 128 + tail + fixed.update_ns + 1
    assert of.step_ns(loads)[1] == pytest.approx(expected)


def test_one_rank_talks_to_nobody() -> None:
    of = model(1)
    loads = of.load("a", table_wise(8, 4, 0)) + of.load("b", data_parallel())
    parts = of.joint_ns(loads)
    assert not any(parts[name] for name in ("ids", "vectors", "shared", "top", "rest"))
    assert of.buffer_bytes(loads).tolist() == [0]
    assert of.sent_bytes(loads).tolist() == [0]


def test_what_a_rank_holds() -> None:
    of = model()
    loads = whole_tables(of)
    # numbers received 8 and sent (8 + 12) / 2; vectors 4 x 4 for all, 2 x 8 for its own samples,
    # and their gradients
    buffers = 4 * (8 + 10) + 2 * 4 * (16 + 16)
    # 6 + 7 numbers of activations, twice the widest pair of the top, 2 gradients of 4
    activations = 2 * 4 * (13 + 2 * 7 + 8)
    # three batches of 1 + 3 numbers of ids, 2 dense, a label; parameters and gradients of 19
    fixed = 3 * 2 * 4 * 7 + 19 * 8
    assert of.buffer_bytes(loads)[0] == buffers
    assert of.held_bytes(loads)[0] == 128 + 4 * 48.5 + buffers + activations + fixed


def test_what_a_rank_sends() -> None:
    of = model()
    # rank 0: 6 numbers to rank 1; 2 vectors and 2 gradients of 16 B; 76 B all-reduced
    assert of.sent_bytes(whole_tables(of))[0] == 6 * 4 + 4 * 16 + 76


def test_nodes_wait_for_the_links_between_them() -> None:
    """4 ranks on 2 nodes; rank 0 alone owns a table: 1 sample of 16 B to each other rank."""
    of = CostModel(WORKLOAD, machine(ranks_per_node=2), 4)
    parts = of.joint_ns(of.load("a", table_wise(8, 4, 0)))
    # within the node 16 B at 2 B/ns, beside it 32 B at 1 B/ns
    assert parts["vectors"] == 32 / 1 + 7
    # 2 links of 1 B/ns a node are slower than 4 B/ns: 2 * 3 / 4 times 28 B
    assert parts["top"] == 1.5 * 28 / 2 + 7
    # an owner on each rank: each takes 16 B from each of 2 ranks of the other node, and of its own
    parts = of.joint_ns(of.load("a", row_wise(8, 4, [0, 1, 2, 3])))
    assert parts["vectors"] == 32 / 1 + 7


def test_each_owner_of_columns_tells_all_others() -> None:
    of = CostModel(workload(sparse_optimizer="rowwise_adagrad"), MACHINE, 4)
    load = of.load("a", column_wise(8, 4, [0, 1, 2, 3]))
    assert load[0, Load.SHARED_NUMBERS] == pytest.approx(3 * SEEN_A)
    # 4 bytes a row to each of 3
    assert of.joint_ns(load)["shared"] == pytest.approx(3 * 4 * SEEN_A / 2 + 5)


def test_vectors_travel_in_the_precision() -> None:
    of = CostModel(workload(precision="bf16"), MACHINE, 2)
    assert of.joint_ns(whole_tables(of))["vectors"] == 16 / 2 + 5


def test_loads_of_all_kinds_add_up() -> None:
    """A table cut in any way has all its bytes somewhere, once."""
    of = model()
    plans: list[TablePlan] = [
        table_wise(8, 4, 1),
        row_wise(8, 4, [0, 1]),
        column_wise(8, 4, [1, 0]),
    ]
    for plan in plans:
        load = of.load("a", plan).sum(0)
        assert load[Load.TABLE_BYTES] == 8 * 4 * 4
        # of all columns each owner reads its part
        assert load[Load.LOOKUPS] == pytest.approx(8 if plan.sharding == "column_wise" else 4)


def test_steps_that_no_graph_holds_take_the_host_its_time() -> None:
    """Bags, cut rows of rowwise_adagrad, copies of adam, learned weights: a size is not known."""
    single = (Feature(table="a"), Feature(table="b"))
    slow = machine(eager_us=5.0)
    whole, cut, copied = table_wise(8, 4, 0), column_wise(8, 4, [0, 1]), data_parallel()
    for features, rule, plan, learns_weights, is_captured in (
        (single, "rowwise_adagrad", whole, False, True),
        (WORKLOAD.features, "rowwise_adagrad", whole, False, False),
        (single, "rowwise_adagrad", cut, False, False),
        (single, "sgd", cut, False, True),
        (single, "sgd", whole, True, False),
        (single, "adam", copied, False, False),
        (single, "adagrad", copied, False, True),
    ):
        work = workload(features=features, sparse_optimizer=rule, learns_weights=learns_weights)
        of = CostModel(work, slow, 2)
        step = of.step_ns(of.load("a", plan) + of.load("b", table_wise(4, 4, 1)))
        assert (step.max() < 5000) == is_captured


def test_vectors_of_whole_tables_and_single_ids_are_read_where_they_arrive() -> None:
    single = workload(features=(Feature(table="a"), Feature(table="b")))
    for topology, plan, copies in (
        (MACHINE, table_wise(8, 4, 0), 0),
        (MACHINE, column_wise(8, 4, [0, 1]), 128),
        (machine(device="cpu"), table_wise(8, 4, 0), 128),
    ):
        of = CostModel(single, topology, 2)
        assert of.joint_ns(of.load("a", plan))["copies"] == copies


def test_on_a_cpu_nothing_overlaps() -> None:
    """Table a alone, on rank 0 of 2, with 4 samples of one id each, in float32.

    Memory and products are taken to cost nothing: what is left is sent. Ids: 2 samples' 4 bytes to
    rank 0, 8 bytes; vectors: 2 samples' 16 bytes, and their gradients as many. 2 bytes a ns and
    5 ns a collective: 4 + 5, and twice 16 + 5. MLPs: 2 x 4 + 4 and 6 x 1 + 1 numbers of 4 bytes,
    summed at 4 bytes a ns, each byte sent once as 2 (W - 1) / W = 1: 12 + 5 and 7 + 5.
    """
    free = dict.fromkeys(("copy_gb_s", "gather_gb_s"), math.inf)
    cpu = machine(device="cpu", row_ns=0.0, sort_ns=0.0, gemm_tflop_s={"fp32": math.inf}, **free)
    work = workload(num_embeddings={"a": 8}, features=(Feature(table="a"),))
    of = CostModel(work, cpu, 2)
    found = of.busy_ns(of.load("a", table_wise(8, 4, 0)))
    expected = (4 + 5) + 2 * (16 + 5) + (12 + 5) + (7 + 5) + 1  # step_us
    assert found.tolist() == pytest.approx([expected, expected])
