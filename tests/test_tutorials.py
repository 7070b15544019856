"Every exercise has a task, a check in plain sight, a place to write, and a folded solution that the check accepts."
import ast
import json
import re
from pathlib import Path

import pytest

tutorials = sorted((Path(__file__).resolve().parents[1]/'nbs'/'tutorials').glob('*.ipynb'))


def cells(path):
    return [(c, ''.join(c['source'])) for c in json.loads(path.read_text(encoding='utf-8'))['cells']]


def exercises(path):
    return [int(k) for c, s in cells(path) if c['cell_type'] == 'markdown'
            for k in re.findall(r'^### Exercise (\d+): \S', s, re.M)]


def test_there_are_four():
    assert len(tutorials) == 4


@pytest.mark.parametrize('path', tutorials, ids=lambda p: p.stem)
def test_exercises_can_be_done_and_failed(path):
    numbers = exercises(path)
    code = [(c, s) for c, s in cells(path) if c['cell_type'] == 'code']
    assert numbers == list(range(1, len(numbers) + 1)) and 3 <= len(numbers) <= 5
    for k in numbers:
        checks = [s for c, s in code if f'def check_{k}(' in s]
        assert len(checks) == 1 and sum(isinstance(n, ast.Assert) and n.msg is not None
                                        for n in ast.walk(ast.parse(checks[0]))) >= 1, f'check_{k} says too little'
        assert [s for c, s in code if s == f'# your turn: check_{k}(...)'], f'no place for answer {k}'
    solutions = [(c, s) for c, s in code if 'solution' in c['metadata'].get('tags', [])]
    assert [re.match(r'# solution (\d+)\b', s)[1] for c, s in solutions] == [str(k) for k in numbers]
    for k, (c, s) in enumerate(solutions, 1):
        assert c['metadata']['jupyter'] == {'source_hidden': True}, f'solution {k} is not folded'
        calls = re.findall(rf'^(.*?)check_{k}\(', s, re.M)
        assert '' in calls, f'solution {k} is not checked'
        assert any('expect_fail(AssertionError, contains=' in c for c in calls), f'no wrong answer to {k} is refused'


@pytest.mark.parametrize('path', tutorials, ids=lambda p: p.stem)
def test_nothing_else_is_hidden(path):
    for c, s in cells(path):
        assert ('solution' in c['metadata'].get('tags', [])) == ('jupyter' in c['metadata'])
        assert not re.search(r'^#\s*\|', s, re.M), f'{s[:40]!r}: a tutorial has no directives'
