"""What prepare and the first step of training make of a spec's data, in this process and without Ray."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch

from tidegate.data import sources
from tidegate.data.canonical import NAMED, PROBLEM, STRATUM, Canonicalise
from tidegate.data.prepared import SPLITS, TARGET, column_array
from tidegate.data.splits import assign
from tidegate.models.build import build
from tidegate.spec.run import Spec
from tidegate.transforms.base import fits
from tidegate.transforms.columns import Columns, canonical
from tidegate.transforms.target import target_column, target_transform


def rows_of(spec: Spec) -> pa.Table:
    """The source's rows in canonical form, each with its problem."""
    data = spec.data
    files = sources.listing(data.source)
    reader = Canonicalise(data)
    reader.check(sources.column_names(data.source, files))
    found = sources.Reader(data.source, reader.columns).tables([(file.path, None) for file in files])
    return pa.concat_tables([reader(table) for table in found])


def first_outputs(spec: Spec) -> dict[str, torch.Tensor]:
    """What the model of a spec, with its first weights, says of the rows of each split. Asserts what prepare would."""
    data, table = spec.data, rows_of(spec)
    usable = fits(column_array(table.column(PROBLEM)))
    allowed = data.invalid_rows.max_fraction if data.invalid_rows.action == "drop" else 0
    assert (~usable).sum() <= allowed * len(usable)
    values = {name: column_array(table.column(name))[usable] for name in table.column_names if name != PROBLEM}
    strata, named = values.pop(STRATUM, None), values.pop(NAMED, None)
    parts = assign(data.split, spec.seed, strata=strata, named=named, count=int(usable.sum()))
    train = parts[0]
    batch = spec.train.global_batch
    assert batch == "all" or batch <= len(train)
    states = {n: canonical(c).fit([canonical(c).partial(values[n][train])]) for n, c in data.inputs.items()}
    state = target_column(data.target).fit([target_column(data.target).partial(values[TARGET][train])])
    assert len(state.get("classes", "ab")) >= 2
    columns, target = Columns(states), target_transform(data.target.column, state)
    features = [column.feature for column in columns.transforms.values()]
    model = build(spec.model, features, target.feature, seed=spec.seed).eval()
    outputs = {}
    for split, rows in zip(SPLITS, parts, strict=True):
        chosen = rows[:64]
        arrays = columns.apply({name: values[name][chosen] for name in data.inputs})
        assert np.isfinite(target.apply(values[TARGET][rows])).all()
        with torch.no_grad():
            outputs[split] = model({name: torch.from_numpy(array) for name, array in arrays.items()})
        assert outputs[split].isfinite().all()
    return outputs
