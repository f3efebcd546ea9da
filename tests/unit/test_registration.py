"""Models that were trained elsewhere: what is kept, that it answers the same, and what is refused, in one line."""

from __future__ import annotations

import importlib
import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import Tensor, nn

import tidegate as tg
from tidegate import artifact, registry
from tidegate.cli.main import tidegate as command
from tidegate.errors import ArtifactError, TidegateError
from tidegate.loaded import Given, Model
from tidegate.registry import Version

NETS = """
    from typing import NamedTuple

    import torch
    from torch import Tensor, nn

    from layers import Scale


    class Net(nn.Module):
        def __init__(self, width=8):
            super().__init__()
            self.scale, self.norm = Scale(), nn.BatchNorm1d(3)
            self.layers = nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Dropout(0.5), nn.Linear(width, 2))

        def forward(self, measures):
            return self.layers(self.norm(self.scale(measures)))


    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.last = nn.Embedding(5, 3), nn.Linear(5, 1)

        def forward(self, series, city):
            found = self.last(torch.cat([series, self.table(city)], dim=1))
            return {"sum": found[:, 0], "is_high": found[:, 0] > 0, "city": city, "half": found.bfloat16()}


    class Mapped(Two):
        def forward(self, inputs):
            city, series = inputs.values()
            return tuple(super().forward(series, city).values())[:2]


    class Named(nn.Linear):
        class Answer(NamedTuple):
            low: Tensor
            high: Tensor

        def __init__(self):
            super().__init__(3, 2)

        def forward(self, x):
            found = super().forward(x)
            return Named.Answer(found, found + 1)


    class Lazy(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.LazyLinear(2)

        def forward(self, x):
            return self.last(x)


    class Forgetful(Net):
        factor = 1.0

        def forward(self, measures):
            return super().forward(measures) * self.factor


    class Mixing(Net):
        def forward(self, measures):
            return super().forward(measures).softmax(dim=0)


    class Random(Net):
        def forward(self, measures):
            return nn.functional.dropout(super().forward(measures))


    class Summed(Net):
        def forward(self, measures):
            return super().forward(measures).sum()


    class Endless(Net):
        def forward(self, measures):
            return super().forward(measures) / 0


    class Lists(Net):
        def forward(self, measures):
            return super().forward(measures).tolist()


    class Nested(Net):
        def forward(self, measures):
            return {"all": [super().forward(measures)]}


    class Picky(Net):
        def forward(self, measures):
            raise ValueError("only on Sundays")


    class Complex(Net):
        def forward(self, measures):
            return super().forward(measures) + 0j


    class Outer:
        class Inner(nn.Linear):
            pass


    def made(width):
        return Net(width)


    def double(width):
        return Net(width).double()


    def halved(width=8):
        return Net(width).half()


    def local():
        class Hidden(nn.Linear):
            pass

        return Hidden(3, 2)


    def number():
        return 7
"""
LAYERS = """
    from torch import nn


    class Scale(nn.Module):
        def forward(self, values):
            return values / 10
"""
ROWS = np.random.default_rng(3).normal(size=(5, 3)).astype(np.float32)


@pytest.fixture(scope="module", autouse=True, name="home")
def _home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One registry: to create one takes seconds."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        patch.setenv("TIDEGATE_HOME", str(home))
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield home


@pytest.fixture(name="nets")
def _nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module `nets`, imported from the working directory as a person's script does."""
    for name, text in {"nets": NETS, "layers": LAYERS}.items():
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    torch.manual_seed(5)
    yield importlib.import_module("nets")
    for name in ("nets", "layers"):
        sys.modules.pop(name, None)


def trained(module: nn.Module) -> nn.Module:
    """Weights and statistics as no new module has them."""
    with torch.no_grad():
        for value in module.state_dict().values():
            if value.is_floating_point():
                value.add_(torch.rand_like(value))
    return module


def loaded(version: Version) -> Model:
    return artifact.load(Path(version.path), version.digest)


def shapes(model: Model) -> dict[str, tuple[str, tuple[int, ...]]]:
    signature = model.signature
    return {tensor.name: (tensor.datatype, tensor.shape) for tensor in (*signature.inputs, *signature.outputs)}


def test_a_registered_module_answers_as_it_does(nets: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    net = trained(nets.Net(16)).train()
    version = tg.register(net, name="net", example=ROWS, args={"width": 16}, alias="best", reason="the first")
    assert (version.ref, version.aliases, version.run_id) == ("net@1", ("best",), "")
    assert registry.version("net@best") == version
    assert [move.why for move in registry.alias_history("net", "best")] == ["the first"]
    assert all(part.training for part in net.modules()), "the module is given back as it was"
    monkeypatch.chdir("/")
    for name in ("nets", "layers"):
        (tmp_path / f"{name}.py").unlink()
        sys.modules.pop(name)
    model = loaded(version)
    assert shapes(model) == {"measures": ("FP32", (-1, 3)), "output": ("FP32", (-1, 2))}
    rows = np.random.default_rng(8).normal(size=(40, 3)).astype(np.float32)
    with torch.no_grad():
        expected = net.eval()(torch.from_numpy(rows)).numpy()
    assert np.array_equal(model.predict({"measures": rows})["output"], expected)
    assert model.predict(model.example(3))["output"].shape == (3, 2)


def test_the_files_and_the_card_say_what_it_is(nets: Any) -> None:
    version = tg.register(trained(nets.Net()), name="card", example=ROWS)
    folder = Path(version.path)
    assert {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()} == {
        *("weights.safetensors", "example.safetensors", "model.json", "artifact.json"),
        *("code/nets.py", "code/layers.py", "about/README.md", "about/lineage.json"),
    }
    shown = CliRunner().invoke(command, ["models", "show", "card"]).output
    assert "not trained by Tidegate" in shown
    assert "measures: FP32 [-1, 3]" in shown
    assert version.digest in shown
    assert registry.lineage(version)["build"] == "nets:Net"
    assert "(registered)" in CliRunner().invoke(command, ["models"]).output
    assert not list(folder.parent.glob(".draft-*"))


def test_the_same_content_is_registered_once(nets: Any) -> None:
    net = trained(nets.Net())
    first = tg.register(net, name="once", example=ROWS)
    again = tg.register(net, name="once", example=ROWS[2:] + 1)
    assert again == first
    other = trained(nets.Net())
    assert tg.register(other, name="once", example=ROWS).number == 2
    assert tg.register(net, name="once", example=ROWS, alias="best").ref == "once@1"
    same = tg.register(net, name="twice", example=ROWS)
    assert (same.number, same.digest) == (1, first.digest), "a name is no content"
    assert [version.number for version in tg.versions("once")] == [2, 1]


def test_files_that_were_damaged_come_back_by_registering_again(nets: Any) -> None:
    net = trained(nets.Net())
    version = tg.register(net, name="damaged", example=ROWS)
    (Path(version.path) / "weights.safetensors").write_bytes(b"")
    with pytest.raises(ArtifactError, match="register it again"):
        loaded(version)
    assert tg.register(net, name="damaged", example=ROWS) == version
    loaded(version)


SERIES, CITIES = ROWS[:, :2], np.array([0, 4, 2, 2, 1])


@pytest.mark.parametrize("kind", ["Two", "Mapped"])
def test_several_inputs_go_by_keyword_or_as_a_mapping(nets: Any, kind: str) -> None:
    module = trained(getattr(nets, kind)())
    # In another order than the parameters, and with a column that is not asked for.
    example = {"city": torch.tensor(CITIES), "series": SERIES.astype(np.float64), "other": CITIES}
    version = tg.register(module, name=kind.lower(), example=example, inputs=["city", "series"])
    model = loaded(version)
    expected = {"city": ("INT64", (-1,)), "series": ("FP32", (-1, 2))}
    assert {name: kind for name, kind in shapes(model).items() if name in [t.name for t in model.signature.inputs]} == (
        expected
    )
    inputs = {"series": torch.from_numpy(SERIES), "city": torch.from_numpy(CITIES)}
    found = model.predict({"series": SERIES, "city": CITIES})
    with torch.no_grad():
        wanted = module(**inputs) if kind == "Two" else module(dict(reversed(inputs.items())))
    if kind == "Two":
        assert {name: tensor.datatype for name, tensor in zip(found, model.signature.outputs, strict=True)} == {
            "sum": "FP32",
            "is_high": "BOOL",
            "city": "INT64",
            "half": "FP32",
        }
        assert np.array_equal(found["sum"], wanted["sum"].numpy())
        assert np.array_equal(found["half"], wanted["half"].float().numpy())
    else:
        assert list(found) == ["output_0", "output_1"]
        assert np.array_equal(found["output_1"], wanted[1].numpy())


def test_named_tuples_and_lazy_layers(nets: Any) -> None:
    named = loaded(tg.register(trained(nets.Named()), name="named", example=ROWS))
    assert shapes(named) == {"x": ("FP32", (-1, 3)), "low": ("FP32", (-1, 2)), "high": ("FP32", (-1, 2))}
    lazy = nets.Lazy()
    lazy(torch.zeros(1, 3))
    found = loaded(tg.register(trained(lazy), name="lazy", example=ROWS)).predict({"x": ROWS})["output"]
    assert np.array_equal(found, lazy(torch.from_numpy(ROWS)).detach().numpy())


def frame(path: Path) -> Any:
    return pd.DataFrame(ROWS.astype(np.float64), columns=["a", "b", "c"])


def file_of(ending: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / f"rows{ending}"
        table = pa.Table.from_pandas(frame(folder))
        if ending == ".npz":
            np.savez(path, measures=ROWS)
        elif ending == ".parquet":
            pq.write_table(table, path)
        elif ending == ".csv":
            frame(folder).to_csv(path, index=False)
        elif ending == ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
        else:
            path.write_text(json.dumps({"measures": ROWS.tolist()}))
        return path

    return make


EXAMPLES: dict[str, Callable[[Path], Any]] = {
    "array": lambda path: ROWS,
    "doubles": lambda path: ROWS.astype(np.float64),
    "read-only": lambda path: np.frombuffer(ROWS.tobytes(), np.float32).reshape(5, 3),
    "tensor": lambda path: torch.from_numpy(ROWS).requires_grad_(),
    "lists": lambda path: ROWS.tolist(),
    "mapping": lambda path: {"x": ROWS},
    "one row": lambda path: ROWS[:1],
    "frame": frame,
    "table": lambda path: pa.Table.from_pandas(frame(path)),
    **{ending: file_of(ending) for ending in (".npz", ".parquet", ".csv", ".json", ".jsonl")},
}


@pytest.mark.parametrize("make", EXAMPLES.values(), ids=EXAMPLES)
def test_examples_of_all_kinds_make_the_same_version(make: Callable[[Path], Any], nets: Any, tmp_path: Path) -> None:
    torch.manual_seed(9)
    version = tg.register(trained(nets.Net()), name="kinds", example=make(tmp_path), inputs="measures")
    assert version.number == 1
    assert shapes(loaded(version)) == {"measures": ("FP32", (-1, 3)), "output": ("FP32", (-1, 2))}


def test_a_module_in_double_precision_takes_doubles(nets: Any) -> None:
    net = trained(nets.double(8))
    model = loaded(tg.register(net, name="double", example=ROWS, build="nets:double", args={"width": 8}))
    assert shapes(model) == {"measures": ("FP64", (-1, 3)), "output": ("FP64", (-1, 2))}


def test_weights_in_a_file_are_the_same_version_as_the_module(nets: Any, tmp_path: Path) -> None:
    net = trained(nets.Net(16))
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    np.savez(tmp_path / "rows.npz", measures=ROWS)
    options = {"--example": "rows.npz", "--build": "nets:made", "--args": '{"width": 16}', "--alias": "best"}
    line = ["register", "net.safetensors", "--name", "file", *(part for pair in options.items() for part in pair)]
    done = CliRunner().invoke(command, line, catch_exceptions=False)
    version = registry.version("file@best")
    assert f"file@1  {version.digest[:12]}  registered" in done.output
    assert tg.register(net, name="file", example=ROWS, build="nets:made", args={"width": 16}).ref == "file@1"
    assert registry.lineage(version)["build"] == "nets:made"


def test_modules_of_torch_need_no_file_of_ones_own() -> None:
    model = loaded(tg.register(nn.Linear(3, 2), name="plain", example=ROWS, args={"in_features": 3, "out_features": 2}))
    assert isinstance(model, Given)
    assert not (Path(registry.version("plain").path) / "code").exists()


def test_a_version_that_answers_otherwise_here_is_refused(nets: Any) -> None:
    """As another release of an installed package would make it."""
    version = tg.register(trained(nets.Net()), name="other", example=ROWS)
    folder = Path(version.path)
    kept = artifact.load_tensors((folder / artifact.EXAMPLE).read_bytes())
    kept["outputs.output"] = kept["outputs.output"] * 1.1
    data = artifact.save_tensors(kept)
    manifest = json.loads((folder / artifact.MANIFEST).read_text())
    (folder / artifact.EXAMPLE).write_bytes(data)
    with pytest.raises(ArtifactError, match=r"example.safetensors is not what was written"):
        loaded(version)
    manifest["sha256"][artifact.EXAMPLE] = artifact.hashlib.sha256(data).hexdigest()
    (folder / artifact.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=r"answers its example otherwise .* install the packages"):
        loaded(version)


class Here(nn.Linear):
    """As of a script or a notebook."""


Here.__module__ = "__main__"

Mistake = Callable[[Any, Path], dict[str, Any]]


def a_pickle(ending: str) -> Mistake:
    def make(nets: Any, folder: Path) -> dict[str, Any]:
        torch.save(nets.Net().state_dict(), folder / f"net{ending}")
        return {"what": f"net{ending}", "build": "nets:Net", "example": ROWS}

    return make


def a_file(weights: Mapping[str, Tensor] | bytes, **more: Any) -> Mistake:
    def make(nets: Any, folder: Path) -> dict[str, Any]:
        if isinstance(weights, bytes):
            (folder / "net.safetensors").write_bytes(weights)
        else:
            save_file({**nets.Net().state_dict(), **weights}, folder / "net.safetensors")
        return {"what": "net.safetensors", "example": ROWS, "build": "nets:Net"} | more

    return make


def a_module(kind: str, **more: Any) -> Mistake:
    return lambda nets, folder: {"what": getattr(nets, kind)(), "example": ROWS} | more


def forgetful(nets: Any, folder: Path) -> dict[str, Any]:
    module = nets.Forgetful()
    module.factor = 3.0
    return {"what": module, "example": ROWS}


def pickled_rows(nets: Any, folder: Path) -> dict[str, Any]:
    np.savez(folder / "rows.npz", measures=np.array([None], dtype=object))
    return {"what": nets.Net(), "example": "rows.npz"}


MISTAKES: dict[str, tuple[Mistake, str]] = {
    "a lambda": (
        lambda nets, folder: {"what": lambda x: x},
        r"<lambda> is no module with weights; expected a torch.nn.Module, .*; pass the trained module that .* makes",
    ),
    "a class": (lambda nets, folder: {"what": nets.Net}, r"Net is no module .* pass the trained module that Net makes"),
    "a notebook's class": (
        lambda nets, folder: {"what": Here(3, 2), "example": ROWS},
        r"__main__:Here is in the script or notebook that runs, .*; put it into a file",
    ),
    "a class in a function": (
        lambda nets, folder: {"what": nets.local(), "example": ROWS},
        r"defined inside a function or a class, .*; put the class at the top level of a file",
    ),
    "a class in a class": (
        lambda nets, folder: {"what": nets.Outer.Inner(3, 2), "example": ROWS},
        r"nets:Outer.Inner is defined inside a function or a class",
    ),
    "nothing there": (lambda nets, folder: {"what": "nowhere"}, r"there is no nowhere; expected a torch.nn.Module"),
    **{
        f"a pickle {ending}": (a_pickle(ending), rf"net\{ending} may hold a pickle, .*; .* safetensors.torch.save_file")
        for ending in (".pt", ".pth", ".pkl")
    },
    "another file": (lambda nets, folder: {"what": "nets.py"}, r"nets.py is of no known kind; expected a torch.nn"),
    "a damaged file": (a_file(b"damaged"), r"net.safetensors cannot be read: .*; expected a whole .safetensors file"),
    "a file alone": (a_file({}, build=None), r"holds weights without a module; name .* build='package.module:name'"),
    "another name": (
        a_file({"more": torch.zeros(1)}),
        r"the weights do not fit .* nets:Net makes \(weights that the module lacks: more\); pass the args",
    ),
    "another shape": (
        a_file({"layers.0.bias": torch.zeros(9)}),
        r"\(weights of another shape: layers.0.bias \[9\], not \[8\]\); pass the args",
    ),
    "other args": (
        lambda nets, folder: {"what": nets.Net(16), "example": ROWS},
        r"do not fit the module that nets:Net makes \(weights of another shape: .*; pass the args",
    ),
    "no args": (
        lambda nets, folder: {"what": nets.Net(), "example": ROWS, "build": "nets:made"},
        r"args: nets:made cannot be called with nothing: missing a required argument: 'width'; expected .*\(width\)",
    ),
    "args that are no JSON": (a_module("Net", args={"width": {8}}), r"args: .*set.*; expected values that JSON has"),
    "no import path": (a_module("Net", build="nets.Net"), r"build: 'nets.Net'; expected .* package.module:name"),
    "no such module": (a_module("Net", build="absent_nets:Net"), r"build: there is no module 'absent_nets'"),
    "no such class": (a_module("Net", build="nets:Nets"), r"build: nets has no 'Nets'; did you mean 'Net'\?"),
    "what makes no module": (a_module("Net", build="nets:number"), r"nets:number made an object of type int; expected"),
    "no example": (a_module("Net", example=None), r"there is no example; pass a few rows of what the model takes"),
    "an empty example": (a_module("Net", example=ROWS[:0]), r"example has .* rows; expected a few rows"),
    "texts": (a_module("Net", example={"x": ["a"]}), r"the example's x holds values of <U1; expected numbers"),
    "ragged rows": (a_module("Net", example=[[1.0], [1.0, 2.0]]), r"the example's measures is no array"),
    "inputs of other lengths": (
        a_module("Two", example={"series": SERIES, "city": CITIES[:2]}),
        r"example has \{'series': 5, 'city': 2\} rows; expected a few rows, equally many",
    ),
    "no such input": (a_module("Net", inputs=["x"], example={"a": ROWS}), r"example has no x; expected some of a"),
    "a pickle as example": (pickled_rows, r"example rows.npz cannot be read: .*allow_pickle"),
    "no such file": (a_module("Net", example="rows.npz"), r"example rows.npz cannot be read: "),
    "another file as example": (a_module("Net", example="rows.xls"), r"rows.xls is of no known kind; expected a file"),
    "other columns": (a_module("Net", example=ROWS[:, :2]), r"nets:Net fails on the example \(measures float32 \[5, 2"),
    "columns by themselves": (
        lambda nets, folder: {"what": nets.Net(), "example": frame(folder)},
        r"fails on the example \(a float32 \[5\], .*\): .*; pass rows .* inputs='x' makes all columns one input",
    ),
    "a module that refuses": (
        a_module("Picky"),
        r"nets:Picky fails on the example .*: ValueError: only on Sundays \(nets.py:\d+\); pass rows",
    ),
    "lists": (
        a_module("Lists"),
        r"nets:Lists the module answers with an object of type list as 'output_0'; expected a",
    ),
    "a list in a mapping": (a_module("Nested"), r"answers with an object of type list as 'all'; expected a tensor, or"),
    "complex numbers": (
        a_module("Complex"),
        r"the model answers 'output' of complex64 \[5, 2\]; expected real numbers",
    ),
    "one answer for all": (a_module("Summed"), r"nets:Summed answers output of shape \[\]; expected one answer a row"),
    "answers without end": (a_module("Endless"), r"answers the example with output that is NaN or infinite"),
    "rows that mix": (a_module("Mixing"), r"answers a row by itself otherwise than among others; expected answers"),
    "chance": (a_module("Random"), r"nets:Random answers a row by itself otherwise than among others"),
    "state that is not kept": (forgetful, r"nets:Forgetful made anew, .* answers otherwise .*; pass the args"),
    "half precision": (
        lambda nets, folder: {"what": nets.Net().half(), "example": ROWS},
        r"the module computes in torch.float16 and what nets:Net makes does not; register module.float\(\)",
    ),
    "a file in half precision": (a_file({}, build="nets:halved"), r"computes in torch.float16; register module.float"),
    "a name": (a_module("Net", name="My Net"), r"model name 'My Net'; expected lower-case letters"),
    "an alias": (a_module("Net", alias="latest"), r"alias 'latest'; expected lower-case letters, .* not 'latest'"),
}


@pytest.mark.parametrize(("mistake", "line"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_one_line(mistake: Mistake, line: str, nets: Any, tmp_path: Path, home: Path) -> None:
    given = {"name": "wrong"} | mistake(nets, tmp_path)
    what = given.pop("what")
    with pytest.raises(TidegateError) as caught:
        tg.register(what, **given)
    assert caught.value.exit_code == 2
    text = str(caught.value)
    assert re.search(line, text), text
    assert "\n" not in text
    assert tg.versions("wrong") == []
    assert list((home / "artifacts").glob("wrong/*")) == [], "nothing is left behind"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--name", "Wrong"], "model name 'Wrong'"),
        (["--name", "wrong", "--args", "{"], "--args is no JSON"),
        (["--name", "wrong", "--args", "[1]"], "--args [1]; expected a JSON object"),
        (["--name", "wrong"], "there is no nowhere"),
    ],
)
def test_mistakes_in_the_shell(arguments: list[str], line: str) -> None:
    done = CliRunner().invoke(command, ["register", "nowhere", *arguments])
    assert isinstance(done.exception, TidegateError)
    assert done.exception.exit_code == 2
    assert line in str(done.exception)
