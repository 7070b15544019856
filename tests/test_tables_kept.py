"The move to new configurations and names left every number of every table where it was."
import json
import runpy
from pathlib import Path

import pandas as pd
import pytest

root = Path(__file__).resolve().parents[1]
tool = runpy.run_path(str(root/'tools'/'table_numbers.py'))
numbers = tool['numbers']
KEPT = {name: text.split() for name, text in json.loads((root/'tests'/'data'/'tables-0.2.json').read_text()).items()}
MOVED = {'x01_regime': 'x01_why_composites_fail'}   # notebooks that have another name since 0.2


@pytest.mark.parametrize('name', KEPT)
def test_numbers_of_version_0_2(name):
    """All numbers in all table cells, in their order.

    Rows that are added on purpose change them: then `tools/table_numbers.py tests/data/tables-0.2.json` keeps the new.
    """
    file = root/'nbs'/'experiments'/f'{name}.ipynb'
    if not file.exists():
        file = file.with_stem(MOVED[name])
    found = numbers(file)
    changed = [i for i, (a, b) in enumerate(zip(KEPT[name], found)) if a != b]
    assert not changed, f'{file.name}: number {changed[0]} was {KEPT[name][changed[0]]}, is {found[changed[0]]}'
    assert len(found) == len(KEPT[name])


@pytest.mark.parametrize('cell, found', [
    ('SRe2L', []), ('ResNet-18', []), ('ConvNet-3 w64', []), ('t-0.5', []), ('holds', []), ('-0.5', ['-0.5']),
    ('+5.3 [-2.5, +13.1] open', ['+5.3', '-2.5', '+13.1']), ('40.6 ± 3.0 (5)', ['40.6', '3.0', '5'])])
def test_digits_of_names_are_no_numbers(cell, found):
    assert tool['NUMBER'].findall(cell) == found


def test_names_of_methods_are_left_out(tmp_path):
    frame = pd.DataFrame({'method': ['random, batch 1024'], 'top-1': [40.5]})
    out = dict(data={'text/html': frame.to_html()})
    (tmp_path/'a.ipynb').write_text(json.dumps(dict(cells=[dict(outputs=[out])])))
    assert numbers(tmp_path/'a.ipynb') == ['40.5']
