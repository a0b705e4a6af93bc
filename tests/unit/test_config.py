"""Files, overrides and what is refused."""

from pathlib import Path

import msgspec
import pytest

from fastdlrm.config import from_tree, load_config, preset_names, set_value, to_toml, to_tree
from fastdlrm.errors import ConfigError


class Layer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    width: int
    norm: str = "none"

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ConfigError(f"width is {self.width}; 1 or more is allowed")


class Net(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    rate: float
    layers: tuple[Layer, ...]
    head: Layer
    is_deep: bool = False


TEXT = """\
name = "net"
rate = 0.5

[head]
width = 1

[[layers]]
width = 8

[[layers]]
width = 4
"""
NET = Net(name="net", rate=0.5, layers=(Layer(width=8), Layer(width=4)), head=Layer(width=1))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "net.toml"
    path.write_text(TEXT, encoding="utf-8")
    return path


def test_reads_a_file(file: Path) -> None:
    assert load_config(str(file), Net) == NET


def test_goes_to_plain_data_and_back() -> None:
    assert list(to_tree(NET)["layers"]) == [
        {"width": 8, "norm": "none"},
        {"width": 4, "norm": "none"},
    ]
    assert from_tree(to_tree(NET), Net, "here") == NET


def test_line_ends_of_another_system(file: Path) -> None:
    file.write_bytes(TEXT.replace("\n", "\r\n").encode())
    assert load_config(str(file), Net) == NET


def test_overrides_take_toml_values_and_bare_words(file: Path) -> None:
    overrides = ["head.width=3", "layers.1.norm=batch", "rate=1e-3", "is_deep=true", "name='5'"]
    config = load_config(str(file), Net, overrides)
    assert config.head.width == 3
    assert config.layers == (Layer(width=8), Layer(width=4, norm="batch"))
    assert config.rate == 0.001
    assert config.is_deep is True
    assert config.name == "5"


def test_false_means_false(file: Path) -> None:
    """The reference's flags of type bool take any text, "False" too, for true."""
    assert load_config(str(file), Net, ["is_deep=false"]).is_deep is False
    assert load_config(str(file), Net, ["is_deep=true", "is_deep=false"]).is_deep is False
    for text in ("False", "0", "no", "'false'", ""):
        with pytest.raises(ConfigError, match=r"[Ee]xpected `bool`, got `.*` - at `\$\.is_deep`"):
            load_config(str(file), Net, [f"is_deep={text}"])


def test_a_later_override_wins_and_an_element_can_be_replaced(file: Path) -> None:
    config = load_config(str(file), Net, ["rate=1", "rate=2", "layers.0={width=2}", "name = a=b"])
    assert config.rate == 2.0
    assert config.layers[0] == Layer(width=2)
    assert config.name.strip() == "a=b"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rate", r"override 'rate': expected a\.b=v"),
        ("haed.width=3", r"override 'haed.width=3': no section 'haed'; known here: name, rate, "),
        ("rate.x=3", r"override 'rate.x=3': rate is a value, not a section"),
        ("rate.x.y=3", r"override 'rate.x.y=3': no section 'x'$"),
        ("layers.2.width=3", r"'2' is not a position in 0\.\.1"),
        ("layers.first=3", r"'first' is not a position in 0\.\.1"),
        ("layers.-1={width=1}", r"'-1' is not a position in 0\.\.1"),
        ("layers.²={width=1}", r"'²' is not a position in 0\.\.1"),
        ("head.wdith=3", r"net\.toml: unknown key `wdith` - at `\$\.head`"),
        ("head.width=wide", r"net\.toml: Expected `int`, got `str` - at `\$\.head\.width`"),
        ("is_deep=False", r"net\.toml: Expected `bool`, got `str` - at `\$\.is_deep`"),
        ("layers.0={}", r"net\.toml: missing key `width` - at `\$\.layers\[0\]`"),
        ("layers.0.width=0", r"net\.toml: width is 0; 1 or more is allowed"),
    ],
)
def test_a_wrong_override_is_refused(file: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(str(file), Net, [override])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config '.*none\.toml': no such file"):
        load_config(str(tmp_path / "none.toml"), Net)


def test_an_unknown_preset_lists_those_there_are() -> None:
    with pytest.raises(
        ConfigError, match=r"config 'tinny': neither a preset \(.*tiny.*\) nor the path of a \.toml"
    ):
        load_config("tinny", Net)
    assert preset_names() == sorted(preset_names())


@pytest.mark.parametrize("content", [b"name = ", b"name = 'caf\xe9'", b"a = 1\na = 2"])
def test_a_file_that_is_not_toml(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"net\.toml: not TOML: "):
        load_config(str(file), Net)


def test_a_struct_s_own_check_says_where() -> None:
    with pytest.raises(ConfigError, match="here: width is -1; 1 or more is allowed"):
        from_tree({"width": -1}, Layer, "here")


def test_goes_to_toml_and_back(tmp_path: Path) -> None:
    odd = 'a "quote", \\, a line\nand \x7f'
    net = Net(name=odd, rate=1e-300, layers=(Layer(width=1),) * 2, head=Layer(width=2, norm="é"))
    path = tmp_path / "odd.toml"
    path.write_text(to_toml(net), encoding="utf-8")
    assert load_config(str(path), Net) == net


def test_keys_that_need_quotes_are_quoted(tmp_path: Path) -> None:
    class Tables(msgspec.Struct):
        rows: dict[str, dict[str, list[int]]]

    tables = Tables(rows={"a b.c": {"é": [1, 2]}, "": {"plain-1_x": []}})
    path = tmp_path / "tables.toml"
    path.write_text(to_toml(tables), encoding="utf-8")
    assert load_config(str(path), Tables) == tables


def test_what_is_none_is_left_out() -> None:
    class Maybe(msgspec.Struct):
        sla_ms: float | None = None

    assert to_toml(Maybe()) == "\n"


def test_a_section_below_a_value_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"here: rate is a value, not a section"):
        set_value({"rate": 0.5}, "rate.x", 1, "here")
