"""Sums worked by hand, and those that the literature prints."""

from dataclasses import replace

import pytest

from fastdlrm.bench.counting import ModelShape, Work, forward_work, training_work
from fastdlrm.bench.models import BenchModel
from fastdlrm.bench.operators import model_shape

TINY = ModelShape(bottom=(3, 2), top=(4, 1), num_sparse=1, dim=2, num_products=0)
"""One layer 3 -> 2, one table of D = 2, both joined to 4, one layer 4 -> 1."""


def test_a_forward_pass_of_a_tiny_model():
    work = forward_work(TINY, batch_size=2, num_ids=6)
    # two samples, 3 x 2 and 4 x 1 weights, a multiplication and an addition each: 2 * 2 * 10
    assert work["fc"].flop == 40
    # numbers: 2*3 in, 6 + 2 weights, 2*2 out; 2*4 in, 4 + 1 weights, 2*1 out: 18 + 15 = 33
    assert work["fc"].num_bytes == 4 * 33
    # six rows of two numbers are added
    assert work["embedding_bag"].flop == 12
    # 6 rows of 8 bytes, 6 ids of 4, 2 pooled vectors of 8
    assert work["embedding_bag"].num_bytes == 48 + 24 + 16
    # joining: two vectors of 2 in, 4 out, a sample
    assert work["interaction"] == Work(0, 4 * 2 * (4 + 4))


def test_a_train_step_of_a_tiny_model():
    work = training_work(TINY, batch_size=2, num_ids=6, num_rows=5)
    # the bottom layer twice (its input takes no gradient), the top layer three times
    assert work["fc"].flop == 2 * (2 * 2 * 6) + 3 * (2 * 2 * 4)
    # bottom: forward 18, weights' gradient 6 + 4 + 8; top: forward 15, 8 + 2 + 5, input's 2 + 4 + 8
    assert work["fc"].num_bytes == 4 * (18 + 18 + 15 + 15 + 14)
    # pooling, summing six gradients into rows, five rows times rate and added
    assert work["embedding_bag"].flop == 12 + 12 + 2 * 5 * 2
    # forward 88, gradients of 2 vectors, 6 ids, 5 rows of 8 bytes read and written
    assert work["embedding_bag"].num_bytes == 88 + 16 + 24 + 2 * 5 * 8


def test_products_of_vectors():
    # three vectors of 2: (1,0) (2,0) (2,1); each two multiplications and two additions
    shape = ModelShape(bottom=(3, 2), top=(5, 1), num_sparse=2, dim=2, num_products=3 * 2)
    assert forward_work(shape, 1, 2)["interaction"].flop == 12
    assert training_work(shape, 1, 2, 2)["interaction"].flop == 36
    # in and out 6 + 5; their gradients 5 + 6; and the other vectors of the products, 6
    assert training_work(shape, 1, 2, 2)["interaction"].num_bytes == 4 * (11 + 11 + 6)


def test_a_cross_network():
    # two vectors of 2 side by side, one layer of rank 1: 4 x 1 and 1 x 4; four products
    shape = replace(TINY, joint_layers=((4, 1), (1, 4)), num_products=4, num_joint_moved=4 * 4)
    plain, work = forward_work(TINY, 2, 6), forward_work(shape, 2, 6)
    assert work["fc"].flop == plain["fc"].flop + 2 * 2 * 8
    # numbers: 2*4 in, 4 + 1 weights and biases, 2*1 out; 2*1 in, 4 + 4, 2*4 out
    assert work["fc"].num_bytes == plain["fc"].num_bytes + 4 * (8 + 5 + 2 + 2 + 8 + 8)
    # joined 4 to 4 as before; start, layer's result and input read, its output written
    assert work["interaction"] == Work(2 * 2 * 4, 4 * 2 * (4 + 4 + 16))
    trained, before = training_work(shape, 2, 6, 5), training_work(TINY, 2, 6, 5)
    assert trained["fc"].flop == before["fc"].flop + 3 * 2 * 2 * 8
    assert trained["interaction"] == Work(3 * 16, 2 * 4 * 2 * 24 + 4 * 2 * 4)


def test_a_model_without_dense_features_has_a_gradient_in_every_layer():
    shape = ModelShape(bottom=(), top=(2, 1), num_sparse=1, dim=2, num_products=0)
    assert training_work(shape, 1, 1, 1)["fc"].flop == 3 * 4
    assert training_work(shape, 1, 1, 1)["interaction"] == Work(0, 0)  # nothing to join


def test_half_width_halves_what_moves_but_the_ids():
    half = replace(TINY, element_bytes=2, row_element_bytes=2)
    assert forward_work(half, 2, 6)["embedding_bag"].num_bytes == 24 + 24 + 8
    assert forward_work(half, 2, 6)["fc"].num_bytes == 2 * 33


def test_intensity():
    assert Work(6, 4).intensity == 1.5
    assert Work(0, 0).intensity == 0


@pytest.mark.parametrize(
    ("name", "fc_mflop", "row_bytes"),
    [
        # bottom 128-64-32 is 10,240 products; 9 vectors of 32 = 288, 288*256 + 256*64 + 64
        ("rmc1", 0.2008, 8 * 80 * 32 * 4),
        # 256-128-64: 40,960; 33 * 64 = 2112, 2112*128 + 128*64 + 64 = 278,592
        ("rmc2", 0.6391, 32 * 120 * 64 * 4),
        # 2560-1024-256-32: 2,891,776; 11 * 32 = 352, 352*512 + 512*256 + 256 = 311,552
        ("rmc3", 6.4067, 10 * 20 * 32 * 4),
        # 128-64-32: 10,240; 6 * 32 = 192, 192*128 + 128*32 + 32 = 28,704
        ("rmc1-paper", 0.0779, 5 * 80 * 32 * 4),
    ],
)
def test_studied_models_cost_what_is_published(name, fc_mflop, row_bytes):
    """0.20, 0.64, 6.41 and 0.08 MFLOP; 81.9, 983, 25.6 and 51.2 KB of rows a sample."""
    model = BenchModel.load(name, rows_scale=0.0001, device="cpu", overrides=())
    ids = sum(group.max_ids for group in model.shape.ids)
    work = forward_work(model_shape(model), 1, ids)
    assert work["fc"].flop / 1e6 == pytest.approx(fc_mflop, rel=1e-3)
    assert ids * model.recipe.model.embedding_dim * 4 == row_bytes
    # the paper's 0.25 FLOP a byte is of rows alone; ids and pooled vectors are bytes as well
    assert 0.22 < work["embedding_bag"].intensity < 0.25
