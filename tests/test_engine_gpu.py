"""The engine on a GPU: recorded steps, no waiting, the CPU's numbers, a resumed run. Skipped without CUDA.

The checks are those of `tools/device_engine.py`; its dry run is at the end and needs no GPU.
"""
import importlib
import json
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from pca_nb import speed

sys.path.insert(0, str(Path(__file__).resolve().parents[1]/'tools'))
checks = importlib.import_module('engine_checks')
device_engine = importlib.import_module('device_engine')
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs CUDA')


@on_gpu
@pytest.mark.parametrize('check, case', checks.CHECKED)
def test_engine_on_a_gpu(check, case):
    right, said = checks.CHECKS[check](checks.place_on('cuda'), case)
    assert right, said


@pytest.mark.parametrize('check, case', [('recorded_is_eager', 'extract'), ('cpu_is_device', 'cutmix'),
                                         ('nobody_waits', 'stored'), ('resumed_is_uninterrupted', 'live')])
def test_the_checks_run_on_a_cpu(check, case):
    right, said = checks.is_right(checks.place_on('cpu'), check, case)
    assert right, said


def test_a_check_notices_what_it_is_for(monkeypatch):
    "A tape that forgets the last operations of a step, and a network that is another on the other device."
    class Forgetful(checks.Tape):
        def replay(self):
            self.steps = self.steps[:-9]
            super().replay()
    place = checks.place_on('cpu')
    place.recorder = Forgetful
    assert not checks.is_right(place, 'recorded_is_eager', 'plain')[0]
    seeds = iter(range(2))
    usual = checks.network
    monkeypatch.setattr(checks, 'network', lambda: usual(next(seeds)))
    assert not checks.is_right(checks.place_on('cpu'), 'cpu_is_device', 'plain')[0]


def test_rows_that_are_there_are_not_made_again_and_an_error_is_a_row(tmp_path, monkeypatch):
    made = []

    def parts(plan):
        yield 'good', lambda: made.append('good') or [dict(value=1)]
        yield 'bad', lambda: made.append('bad') or 1/0
        yield 'last', lambda: made.append('last') or [dict(value=2), dict(value=3)]
    monkeypatch.setitem(device_engine.STEPS, 'speed', parts)
    for _ in range(2): device_engine.main(tmp_path, step='speed', dry_run=True, end=time.time()+60)
    assert made == ['good', 'bad', 'last', 'bad']
    rows = [json.loads(line) for line in (tmp_path/'device_engine.jsonl').read_text().splitlines()]
    assert [r.get('value') for r in rows] == [1, None, 2, 3, None] and 'ZeroDivisionError' in rows[1]['error']
    assert all({'device', 'torch', 'cpu'} <= set(r['machine']) and r['dry'] for r in rows)


def is_running(pid):
    try: return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess: return False


def test_a_step_ends_when_its_time_is_over(tmp_path):
    "With everything that it started, and the next one begins."
    child = f"""
import subprocess, sys, time
p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])
open({str(tmp_path/'pid')!r}, 'w').write(str(p.pid))
time.sleep(60)"""
    begin = time.monotonic()
    assert device_engine.run_for([sys.executable, '-c', child], 5) == 'stopped after 5 s'
    assert time.monotonic()-begin < 30
    pid = int((tmp_path/'pid').read_text())
    while is_running(pid) and time.monotonic()-begin < 40: time.sleep(.05)  # a killed process takes a moment to go
    assert not is_running(pid)
    assert device_engine.run_for([sys.executable, '-c', 'raise SystemExit(3)'], 20) == 'failed with exit code 3'


def test_no_part_begins_without_time(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(device_engine.STEPS, 'speed', lambda plan: [('late', lambda: [dict(value=1)])])
    device_engine.main(tmp_path, step='speed', dry_run=True, end=time.time()+1)
    assert 'no time is left' in capsys.readouterr().out and not (tmp_path/'device_engine.jsonl').exists()


@pytest.mark.parametrize('step', list(device_engine.STEPS))
def test_dry_run(tmp_path, step):
    "Every part of every step on a CPU, with tiny sizes."
    device_engine.main(tmp_path, step=step, dry_run=True, end=time.time()+300)
    file = tmp_path/'device_engine.jsonl'
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    assert not [r for r in rows if 'error' in r]
    if step == 'speed': assert len({r['part'] for r in rows}) == 7 and sum('ratio' in r for r in rows) == 10
    if step == 'speed': assert len(speed.read_speed(tmp_path/'speed.json')) == 10
    if step == 'checks': assert all(r['holds'] for r in rows) and len(rows) == 2
