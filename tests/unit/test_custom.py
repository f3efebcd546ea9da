"""A person's own code and module: what is collected, how it is isolated, what is called with what, what is refused."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
import random
import re
import subprocess
import sys
import textwrap
import threading
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tidegate.errors import SpecError, TrainingError
from tidegate.models import code as codes
from tidegate.models import custom
from tidegate.models.build import build, misfit
from tidegate.models.code import Code, collect
from tidegate.spec.model import Custom, Linear
from tidegate.spec.run import Spec
from tidegate.transforms.base import Feature

NUMBER, NUMBERS = Feature("age", "number", (1,)), Feature("series", "number", (3,))
CATEGORY = Feature("city", "category", (1,), 5)
IMAGE = Feature("pixels", "image", (2, 6, 9))
TEXT = Feature("text", "text", (12,), 40)

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes files into a folder, which becomes the working directory: `write({"my_models.py": source})`."""

    def write(files: Mapping[str, str], folder: str = "work") -> Path:
        root = tmp_path / folder
        for path, text in files.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(textwrap.dedent(text), encoding="utf-8")
        monkeypatch.chdir(root)
        return root

    return write


def collected(path: str) -> Code:
    return collect({"model.build": path})


def value_of(path: str) -> Any:
    return collected(path).resolve(path, "model.build")


def test_a_module_of_the_working_directory_is_found_and_the_process_stays_as_it_was(write: Write) -> None:
    source = "import numpy, typing_extensions\nVALUE = 7\n"
    write({"my_models.py": source, "another.py": "1 / 0"})
    path, modules = list(sys.path), set(sys.modules)
    code = collected("my_models:VALUE")
    assert code.resolve("my_models:VALUE", "model.build") == 7
    assert code.files == {"my_models.py": source}
    assert sys.path == path
    assert {name for name in set(sys.modules) - modules if not name.startswith("tidegate_code_")} == set()


PACKAGE = {
    "nets/__init__.py": "from .parts import FACTOR",
    "nets/parts.py": "FACTOR = 3",
    "nets/deep/er/__init__.py": "",
    "nets/deep/er/model.py": """
        import helpers, nets.other
        import nets.parts as parts
        from ... import FACTOR as same
        from ...helpers import ONE as inner
        from nets.deep.sibling import name

        def value():
            from ..sibling import name as again
            import late
            import nets
            return [helpers.ONE, inner, parts.FACTOR, same, nets.FACTOR, nets.other.TWO, name, again, late.LATE]
        """,
    "nets/deep/sibling.py": "name = 'sibling'",
    "nets/other.py": "TWO = 2",
    "nets/helpers.py": "ONE = 'inner'",
    "nets/data.txt": "no code",
    "nets/.hidden/x.py": "",
    "nets/not-importable/x.py": "",
    "helpers.py": "import constants\nONE = constants.ONE",
    "constants.py": "ONE = 1",
    "late.py": "LATE = 'late'",
    "unused.py": "",
}


def test_a_package_is_kept_whole_and_so_is_what_it_imports(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write(PACKAGE)
    code = collected("nets.deep.er.model:value")
    monkeypatch.chdir("/")
    assert set(code.files) == {
        *(path for path in PACKAGE if path.startswith("nets/") and not re.search(r"txt|hidden|not-", path)),
        *("helpers.py", "constants.py", "late.py"),
    }
    value = code.resolve("nets.deep.er.model:value", "model.build")
    assert value() == [1, "inner", 3, 3, 3, 2, "sibling", "sibling", "late"]


def test_sys_path_is_searched_before_installed_packages_and_they_are_not_kept(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write({"mine.py": "from yaml import VALUE", "yaml.py": "VALUE = 'own'"})
    monkeypatch.chdir("/")
    with pytest.raises(SpecError, match=re.escape("model.build: there is no module 'mine'; expected a file mine.py")):
        collected("mine:VALUE")
    monkeypatch.syspath_prepend(str(root))
    code = collected("mine:VALUE")
    assert set(code.files) == {"mine.py", "yaml.py"}
    assert code.resolve("mine:VALUE", "model.build") == "own"
    assert yaml.__name__ == "yaml"
    assert sys.modules["yaml"] is yaml
    installed = collect({"model.build": "torch.nn:Linear", "model.loss": "math:sqrt"})
    assert installed.files == {}
    assert installed.resolve("torch.nn:Linear", "model.build") is nn.Linear


def test_tidegate_itself_is_never_kept(write: Write) -> None:
    write({"mine.py": "from tidegate.errors import SpecError"})
    code = collected("mine:SpecError")
    assert set(code.files) == {"mine.py"}
    assert code.resolve("mine:SpecError", "model.build") is SpecError


def test_sources_in_any_encoding_are_kept_as_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_bytes("# coding: latin-1\r\nVALUE = 'Größe'\r\n".encode("latin-1"))
    (tmp_path / "broken.py").write_bytes(b"VALUE = '\xff'")
    monkeypatch.chdir(tmp_path)
    assert collected("mine:VALUE").files == {"mine.py": "# coding: latin-1\nVALUE = 'Größe'\n"}
    assert value_of("mine:VALUE") == "Größe"
    with pytest.raises(SpecError, match=r"model.build: .*broken.py cannot be read"):
        collected("broken:VALUE")


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({f"many/m{number}.py": "" for number in range(4)}, ("MAX_FILES", 3)),
        ({"many/__init__.py": "import large", "large.py": "# " + "x" * 100}, ("MAX_BYTES", 100)),
    ],
)
def test_too_much_source_is_refused(
    files: dict[str, str], limit: tuple[str, int], write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write({"many/__init__.py": ""} | files)
    assert len(collected("many:__name__").files) == len({"many/__init__.py"} | set(files))
    monkeypatch.setattr(codes, *limit)
    with pytest.raises(SpecError, match=r"model.build: the sources kept with a model are more than .* smaller package"):
        collected("many:__name__")


def test_two_versions_of_a_module_live_side_by_side(write: Write) -> None:
    source = """
        from __future__ import annotations
        from dataclasses import dataclass
        from typing import ClassVar
        import part

        @dataclass
        class Options:
            kind: ClassVar[str] = "{0}"
            width: int = {1}

        def both():
            import part as again
            return part.VALUE, again.VALUE
        """
    found = []
    for number in (1, 2):
        write({"mine.py": source.format("abc"[number], number), "part.py": f"VALUE = {number}"}, f"work{number}")
        code = collected("mine:Options")
        found.append((code, code.resolve("mine:Options", "model.build"), code.resolve("mine:both", "model.build")))
    for number, (code, options, both) in enumerate(found, 1):
        assert both() == (number, number)
        assert [field.name for field in dataclasses.fields(options)] == ["width"]
        assert (options.kind, options().width) == ("abc"[number], number)
        assert inspect.getsource(options).strip() == textwrap.dedent(code.files["mine.py"]).split("\n\n")[1].strip()
        assert code.resolve("mine:Options", "model.build") is options
        again: Code = pickle.loads(pickle.dumps(code))  # noqa: S301 - as Ray carries it to the workers
        assert again == code
        assert again.resolve("mine:Options", "model.build") is options
    assert found[0][0].package != found[1][0].package
    assert "mine" not in sys.modules


def test_many_threads_load_a_module_once() -> None:
    code = Code({"mine.py": "import time\ntime.sleep(0.05)\nVALUE = object()"})
    start, found = threading.Barrier(8), []

    def resolve() -> None:
        start.wait()
        found.append(code.resolve("mine:VALUE", "model.build"))

    threads = [threading.Thread(target=resolve) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len({id(value) for value in found}) == 1
    assert sum(getattr(finder, "package", "") == code.package for finder in sys.meta_path) == 1


STYLES = {
    "import {m}": "{m}.value",
    "import {m} as short": "short.value",
    "import os, {m}": "{m}.value",
    "from {m} import value as short": "short",
    "from {p} import {n} as short": "short.value",
    "from .{n} import value as short": "short",
    "from . import {n}": "{n}.value",
}


@given(st.data())
def test_imports_of_every_style_give_the_values_of_the_same_version(data: st.DataObject) -> None:
    package = data.draw(st.sampled_from(["mine", "mine.inner", "mine.inner.most"]))
    folder = package.replace(".", "/")
    has_init = data.draw(st.booleans())
    files = {f"{folder}/__init__.py": ""} if has_init else {}
    values: list[int] = []
    for number in range(data.draw(st.integers(1, 5))):
        lines, terms, total = [], [], 0
        for other in data.draw(st.sets(st.integers(0, number - 1))) if number else ():
            style = data.draw(st.sampled_from(sorted(STYLES)))
            names = {"p": package, "n": f"m{other}", "m": f"{package}.m{other}"}
            lines.append(style.format(**names))
            lines.append(f"term{other} = {STYLES[style].format(**names)}")
            terms.append(f"term{other}")
            total += values[other]
        own = data.draw(st.integers(-9, 9))
        if data.draw(st.booleans()):
            body = ["def compute():", *(f"    {line}" for line in [*lines, f"return {' + '.join([*terms, str(own)])}"])]
            lines = [*body, "value = compute()"]
        else:
            lines.append(f"value = {' + '.join([*terms, str(own)])}")
        files[f"{folder}/m{number}.py"] = "\n".join(lines)
        values.append(own + total)
    code = Code(files)
    problem, found = "", []
    try:
        found = [code.resolve(f"{package}.m{number}:value", "model.build") for number in range(len(values))]
    except SpecError as error:
        # Not raised from here: hypothesis would take errors of differently named files for different errors.
        problem = str(error)
    finally:
        for name in [name for name in sys.modules if name.startswith(code.package)]:
            del sys.modules[name]
        sys.meta_path[:] = [finder for finder in sys.meta_path if getattr(finder, "package", "") != code.package]
    assert (problem, found) == ("", values)


def test_a_cycle_of_imports_works_as_in_any_package(write: Write) -> None:
    write(
        {
            "ring/__init__.py": "from ring import a",
            "ring/a.py": "import ring.b as b\nimport ring.b\nONE = 1\nTHREE = b.TWO + ONE",
            "ring/b.py": "import ring.a\nfrom ring import a\nTWO = 2\ndef one():\n    return ring.a.ONE + a.ONE",
        }
    )
    assert value_of("ring.a:THREE") == 3
    assert value_of("ring.b:one")() == 2


def test_tracebacks_show_the_source(write: Write) -> None:
    write({"mine.py": "def fail():\n    raise ValueError('no')  # the reason\n"})
    fail = value_of("mine:fail")
    with pytest.raises(ValueError, match="no") as caught:
        fail()
    assert "# the reason" in "".join(traceback.format_exception(caught.value))


BROKEN: dict[str, tuple[dict[str, str], str, str]] = {
    "no module": (
        {},
        "nowhere:Net",
        r"model.build: there is no module 'nowhere'; expected a file nowhere.py or .*work",
    ),
    "no module in the package": ({"p/__init__.py": ""}, "p.q:Net", r"importing p.q failed: .*No module named 'p.q'"),
    "a module, not a package": ({"p.py": ""}, "p.q:Net", r"importing p.q failed: .*'p' is not a package"),
    "no such name": (
        {"p.py": "Network = 1"},
        "p:Netwerk",
        r"model.build: p has no 'Netwerk'; did you mean 'Network'\?",
    ),
    "nothing alike": ({"p.py": "Network = 1"}, "p:X", r"model.build: p has no 'X'$"),
    "raises": ({"p.py": "\n\n1 / 0"}, "p:X", r"importing p failed: ZeroDivisionError: division by zero \(p.py:3\)$"),
    "raises inside": (
        {"p.py": "import q.r", "q/r.py": "import json\n\njson.loads('{')"},
        "p:X",
        r"importing p failed: JSONDecodeError: Expecting .* \(q/r.py:3\)$",
    ),
    "no Python": ({"p.py": "x = 1\nx = = 2"}, "p:X", r"importing p failed: SyntaxError: invalid syntax \(p.py:2\)$"),
    "exits": ({"p.py": "raise SystemExit('bye')"}, "p:X", r"importing p failed: SystemExit: bye \(p.py:1\)$"),
    "lacks a package": (
        {"p.py": "import nowhere"},
        "p:X",
        r"ModuleNotFoundError: No module named 'nowhere' \(p.py:1\)$",
    ),
    "lacks a name": (
        {"p.py": "from q import x", "q.py": ""},
        "p:X",
        r"failed: ImportError: cannot import name 'x' from 'q' \(q.py\) \(p.py:1\)$",
    ),
    "needs a file beside it": (
        {"p.py": "open(__file__ + '.txt')", "p.py.txt": ""},
        "p:X",
        r"FileNotFoundError: .*'p.py.txt' \(p.py:1\)$",
    ),
    "in the script": (
        {},
        "__main__:Net",
        r"model.build: __main__:Net is in the script or notebook .*; put it into a file",
    ),
    "fails in an installed package": ({}, "torch.nowhere:X", r"importing torch.nowhere failed: .*No module named"),
}


@pytest.mark.parametrize(("files", "path", "message"), BROKEN.values(), ids=BROKEN)
def test_what_cannot_be_resolved_is_refused_in_one_line(
    files: dict[str, str], path: str, message: str, write: Write, tmp_path: Path
) -> None:
    (tmp_path / "work").mkdir()
    write(files)
    with pytest.raises(SpecError, match=message) as caught:
        collected(path)
    assert str(caught.value).startswith("model.build: ")
    assert "\n" not in str(caught.value)
    assert "tidegate_code" not in str(caught.value)


def test_a_script_that_trains_when_imported_is_refused(write: Write) -> None:
    write(
        {
            "script.py": """
                from tidegate.models.code import collect

                class Net:
                    pass

                collect({"model.build": "script:Net"})
                """
        }
    )
    with pytest.raises(SpecError, match=r"importing script starts a run by itself.* `if __name__ == '__main__':`"):
        collected("script:Net")
    write({"model.py": "VALUE = 1"})
    assert value_of("model:VALUE") == 1


NET = """
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self, width, features, outputs, kinds=()):
            super().__init__()
            (feature,) = features
            self.seen = (width, feature, outputs, kinds)
            self.layers = nn.Sequential(nn.Flatten(), nn.Linear(108, width), nn.ReLU(), nn.Linear(width, outputs))

        def forward(self, images):
            assert images.shape[1:] == (2, 6, 9), images.shape
            return self.layers(images)

    class Several(nn.Module):
        def __init__(self):
            super().__init__()
            self.cities, self.tokens = nn.Embedding(5, 4), nn.Embedding(40, 4, padding_idx=0)
            self.head = nn.Linear(12, 2)
            self.shapes = {}

        def forward(self, inputs):
            self.shapes = {name: tuple(values.shape) for name, values in inputs.items()}
            city, text = self.cities(inputs["city"])[:, 0], self.tokens(inputs["text"]).sum(1)
            return self.head(torch.cat([city, text, inputs["series"], inputs["age"]], 1))

    def made(outputs):
        return nn.Sequential(nn.Flatten(), nn.Linear(108, outputs))

    def number(width):
        return nn.Sequential(nn.Flatten(), nn.Linear(108, width), nn.Flatten(0 if width == 1 else 1))

    class Other(nn.Module):
        def __init__(self, **options):
            super().__init__()
            self.options = options
            self.head = nn.Linear(108, 3)

        def forward(self, images):
            if self.options.get("fails"):
                raise KeyError("no way")
            found = self.head(images.flatten(1))
            return (found, found) if self.options.get("pair") else found

        def get_extra_state(self):
            return {"a": 1} if self.options.get("extra") else torch.zeros(1)

        def set_extra_state(self, state):
            pass

    def draws(outputs):
        import random
        import numpy as np
        net = made(outputs)
        net[1].weight.data[0] = torch.tensor(np.random.rand(108))
        net[1].weight.data[1] = random.random()
        net[1].weight.data[2] = torch.rand(108)
        return net

    def lazy(outputs):
        return nn.Sequential(nn.Flatten(), nn.LazyLinear(outputs))

    class Weightless(nn.Module):
        def forward(self, images):
            return images.flatten(1)[:, :3]

    def explodes(args):
        args.append(1)
        raise ZeroDivisionError("never")

    VALUE, MODULE = 3, nn.Linear(1, 1)

    def text():
        return "net"

    def squared(outputs, targets):
        assert outputs.shape == targets.shape
        return (outputs - targets).square().mean()

    def by_row(outputs, targets):
        return nn.functional.cross_entropy(outputs, targets, reduction="none")

    class Scaled:
        def __call__(self, outputs, targets):
            return 2 * nn.functional.cross_entropy(outputs, targets, reduction="mean").reshape(1)

    class Needy:
        def __init__(self, scale):
            pass
    """


def options_of(name: str, loss: str | None = None, **args: Any) -> Custom:
    return Custom.model_validate({"type": "custom", "build": name, "loss": loss, "args": args})


def module_of(
    name: str, features: list[Feature] | None = None, outputs: int = 3, seed: int = 0, **args: Any
) -> nn.Module:
    options = options_of(f"mine:{name}", **args)
    return build(
        options, features or [IMAGE], Feature("y", "category", (), outputs), seed=seed, code=custom.code_of(options)
    )


def pixels(rows: int = 4) -> Tensor:
    return torch.randn(rows, 108, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def mine(write: Write) -> None:
    write({"mine.py": NET})


@pytest.mark.usefixtures("mine")
def test_a_module_gets_its_arguments_and_what_it_asks_for() -> None:
    module = module_of("Net", width=7, kinds=["a", {"b": None}])
    assert module.seen == (7, IMAGE, 3, ["a", {"b": None}])
    assert module_of("Net", width=7, outputs=5, features=[IMAGE]).seen[2] == 5
    assert isinstance(module_of("made"), nn.Sequential)
    assert module.training


@pytest.mark.usefixtures("mine")
def test_an_argument_of_the_spec_goes_before_what_the_target_needs() -> None:
    options = options_of("mine:Net", width=2, outputs=3)
    module = build(options, [IMAGE], Feature("y", "category", (), 3), seed=0, code=custom.code_of(options))
    assert module.seen[2] == 3
    with pytest.raises(SpecError, match=r"gave a tensor of shape \[2, 3\]; expected a tensor of shape \[2, 4\]"):
        build(options, [IMAGE], Feature("y", "category", (), 4), seed=0, code=custom.code_of(options))


@pytest.mark.usefixtures("mine")
def test_one_input_comes_as_it_is_and_in_its_shape() -> None:
    module, values = module_of("Net", width=7).eval(), pixels()
    expected = module.layers(values.reshape(-1, *IMAGE.shape))  # type: ignore[operator]
    assert torch.equal(module({"pixels": values, "other": values}), expected)
    assert torch.equal(module(values.reshape(-1, *IMAGE.shape)), expected)
    assert set(module.state_dict()) == {f"layers.{layer}.{kind}" for layer in (1, 3) for kind in ("weight", "bias")}
    with pytest.raises(KeyError, match="pixels"):
        module({"other": values})


@pytest.mark.usefixtures("mine")
def test_several_inputs_come_as_a_mapping_of_just_them() -> None:
    features = [CATEGORY, TEXT, NUMBERS, NUMBER]
    module = module_of("Several", features, outputs=2)
    inputs = {
        "age": torch.zeros(3, 1),
        "series": torch.zeros(3, 3),
        "text": torch.ones(3, 12, dtype=torch.int32),
        "__length.text": torch.full((3, 1), 12),
        "city": torch.zeros(3, 1, dtype=torch.int32),
        "label": torch.zeros(3),
    }
    assert module(inputs).shape == (3, 2)
    assert module.shapes == {"city": (3, 1), "text": (3, 12), "series": (3, 3), "age": (3, 1)}
    shapes = {name: tuple(values.shape) for name, values in custom.shaped(inputs, features).items()}
    assert shapes == module.shapes


@pytest.mark.usefixtures("mine")
def test_a_copy_and_a_compiled_module_answer_the_same() -> None:
    module = module_of("Net", width=7)
    copied = copy.deepcopy(module)
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    expected = module({"pixels": pixels()})
    assert torch.equal(copied({"pixels": pixels()}), expected)
    assert torch.equal(compiled({"pixels": pixels()}), expected)
    with torch.no_grad():
        next(module.parameters()).add_(1)
    assert torch.equal(copied({"pixels": pixels()}), expected)
    assert not torch.equal(compiled({"pixels": pixels()}), expected)


def test_a_compiled_module_calls_functions_of_its_own_version(write: Write) -> None:
    source = """
        from torch import nn
        from parts import scale

        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = nn.Linear(1, 1)

            def forward(self, ages):
                return scale(self.layer(ages))
        """
    part = "FACTOR = {}\ndef scale(values):\n    import parts\n    return values * FACTOR * parts.FACTOR"
    for factor in (2, 3):
        write({"mine.py": source, "parts.py": part.format(factor)}, f"work{factor}")
        module = module_of("Net", [NUMBER], outputs=1)
        ages = torch.ones(2, 1)
        compiled = torch.compile(module, backend="eager", fullgraph=True)
        assert torch.allclose(compiled({"age": ages}), factor**2 * module.layer(ages))  # type: ignore[operator]


@pytest.mark.usefixtures("mine")
def test_initial_weights_follow_from_the_seed_alone() -> None:
    def states() -> tuple[Any, ...]:
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[index]

    before = states()
    one = module_of("draws", seed=2**40).state_dict()
    assert states() == before
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    two, other = module_of("draws", seed=2**40).state_dict(), module_of("draws", seed=1).state_dict()
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    for row in range(3):
        assert not torch.equal(one["1.weight"][row], other["1.weight"][row])


@pytest.mark.usefixtures("mine")
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_lazy_layers_have_weights_once_built() -> None:
    assert module_of("lazy").state_dict()["1.weight"].shape == (3, 108)


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize("width", [1, 2])
def test_a_number_may_come_with_or_without_a_second_dimension(width: int) -> None:
    if width == 1:
        assert module_of("number", outputs=1, width=1)({"pixels": pixels()}).shape == (4,)
        assert module_of("made", outputs=1)({"pixels": pixels()}).shape == (4, 1)
        with pytest.raises(SpecError, match=r"gave a tensor of shape \[2\]; expected .* \[2, 3\]$"):
            module_of("number", outputs=3, width=1)
    else:
        with pytest.raises(SpecError, match=r"gave a tensor of shape \[2, 2\]; expected .* \[2, 1\] or \[2\]$"):
            module_of("number", outputs=1, width=2)


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "no class": ("VALUE", {}, "model.build: mine:VALUE is an object of type int; expected a class or a function"),
    "an instance": ("MODULE", {}, "model.build: mine:MODULE is an object of type Linear; expected a class"),
    "an argument missing": (
        "Net",
        {},
        "model.args: mine:Net cannot be called with features, outputs: missing a required argument: 'width'; "
        "expected arguments for (width, features, outputs, kinds=())",
    ),
    "an argument too many": (
        "text",
        {"wide": 1},
        "cannot be called with wide: got an unexpected keyword argument 'wide'",
    ),
    "no module": ("text", {}, "model.build: mine:text made an object of type str; expected a torch.nn.Module"),
    "raises": ("explodes", {"args": [0]}, "model.build: mine:explodes failed: ZeroDivisionError: never (mine.py:"),
    "wrong width": ("Other", {}, "gave a tensor of shape [2, 3]; expected a tensor of shape [2, 4]"),
    "no tensor": ("Other", {"pair": True}, "for 2 rows mine:Other gave an object of type tuple"),
    "forward raises": (
        "Other",
        {"fails": True},
        "model.build: a pass of 2 rows through mine:Other failed: KeyError: 'no way' (mine.py:",
    ),
}


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize(("name", "args", "message"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused(name: str, args: dict[str, Any], message: str) -> None:
    options = options_of(f"mine:{name}", **args)
    with pytest.raises(SpecError, match=re.escape(message)) as caught:
        build(options, [IMAGE], Feature("y", "category", (), 4), seed=0, code=custom.code_of(options))
    assert "\n" not in str(caught.value)
    assert options.args == args


@pytest.mark.usefixtures("mine")
def test_state_that_is_no_tensor_and_modules_without_weights_are_refused() -> None:
    with pytest.raises(SpecError, match="keeps _extra_state with its weights, which is no tensor"):
        module_of("Other", extra=True)
    with pytest.raises(SpecError, match="made a module without weights to train"):
        module_of("Weightless")


@pytest.mark.usefixtures("mine")
def test_what_a_module_takes_is_told_when_a_pass_fails() -> None:
    with pytest.raises(SpecError, match=re.escape("expected a module for age [rows, 1], city [rows, 1]")):
        module_of("made", [NUMBER, CATEGORY])


LOSSES: dict[str, tuple[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "a function": ("mine:squared", lambda outputs, targets: (outputs.reshape(-1) - targets).square().mean()),
    "torch's function": ("torch.nn.functional:l1_loss", lambda o, t: (o.reshape(-1) - t).abs().mean()),
    "torch's class": ("torch.nn:HuberLoss", lambda o, t: nn.functional.huber_loss(o.reshape(-1), t)),
}


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize(("path", "expected"), LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("shape", [(5,), (5, 1)])
def test_a_loss_of_numbers_compares_row_by_row(
    path: str, expected: Callable[[Tensor, Tensor], Tensor], shape: tuple[int, ...]
) -> None:
    options = options_of("mine:made", path)
    function = custom.loss(options, custom.code_of(options))
    assert function is not None
    outputs, targets = torch.arange(5.0).reshape(shape).requires_grad_(), torch.tensor([3.0, 0, 1, 7, 2])
    found = function(outputs, targets)
    assert found.shape == ()
    assert torch.allclose(found, expected(outputs, targets))
    found.backward()  # type: ignore[no-untyped-call]
    assert outputs.grad is not None


@pytest.mark.usefixtures("mine")
def test_a_loss_of_classes() -> None:
    options = options_of("mine:made", "mine:Scaled")
    function = custom.loss(options, custom.code_of(options))
    assert function is not None
    outputs, targets = torch.randn(5, 3), torch.tensor([0, 2, 1, 1, 0])
    found = function(outputs, targets)
    assert found.shape == ()
    assert torch.allclose(found, 2 * nn.functional.cross_entropy(outputs, targets))
    assert function(outputs.bfloat16(), targets).dtype == torch.float32
    assert custom.loss(options_of("mine:made"), Code({})) is None


@pytest.mark.usefixtures("mine")
def test_a_loss_that_is_none_is_refused() -> None:
    def loss_of(path: str) -> custom.Loss:
        options = options_of("mine:made", path)
        found = custom.loss(options, custom.code_of(options))
        assert found is not None
        return found

    with pytest.raises(SpecError, match=r"model.loss: mine has no 'squaret'; did you mean 'squared'"):
        loss_of("mine:squaret")
    with pytest.raises(SpecError, match=r"model.loss: mine:VALUE is an object of type int"):
        loss_of("mine:VALUE")
    with pytest.raises(SpecError, match=r"model.loss: mine:Needy failed: TypeError: .*'scale'"):
        loss_of("mine:Needy")
    with pytest.raises(
        TrainingError, match=r"model.loss: mine:by_row gave a tensor of shape \[5\]; expected one number"
    ):
        loss_of("mine:by_row")(torch.randn(5, 3), torch.zeros(5, dtype=torch.int64))


def test_models_of_tidegate_have_no_code() -> None:
    assert custom.code_of(Linear(type="linear")) == Code({})


def test_what_does_not_fit_is_told_by_name() -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    assert misfit(module, module.state_dict()) == ""
    weights = module.state_dict() | {f"net.{number}": torch.zeros(1) for number in range(6)}
    weights["0.weight"] = torch.zeros(3, 4)
    del weights["1.running_var"]
    assert misfit(module, weights) == (
        "weights that the module lacks: net.0, net.1, net.2, net.3 and 2 more; weights missing: 1.running_var; "
        "weights of another shape: 0.weight [3, 4], not [3, 2]"
    )


def test_the_example_of_the_page_works(write: Write) -> None:
    page = (Path(__file__).parents[2] / "docs" / "own-model.md").read_text()
    source, spec_text = (re.findall(rf"```{kind}\n(.*?)```", page, re.DOTALL)[0] for kind in ("python", "yaml"))
    write({"my_models.py": source})
    spec = Spec.model_validate(yaml.safe_load(spec_text))
    assert isinstance(spec.model, Custom)
    code = custom.code_of(spec.model)
    module = build(
        spec.model, [Feature("pixels", "image", (1, 8, 8))], Feature("y", "category", (), 10), seed=0, code=code
    )
    function = custom.loss(spec.model, code)
    assert function is not None
    found = function(module({"pixels": torch.rand(6, 64)}), torch.arange(6))
    found.backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_a_console_script_finds_the_working_directory_before_installed_packages(write: Write) -> None:
    folder = write({"mine.py": "from yaml import VALUE", "yaml.py": "VALUE = 7"})
    script = (
        "import sys; from tidegate.models.code import collect; assert '' not in sys.path;"
        "print(collect({'model.build': 'mine:VALUE'}).resolve('mine:VALUE', 'model.build'))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, cwd=folder, check=False)
    assert done.stdout == "7\n", done.stderr
