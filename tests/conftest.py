import contextlib
import json
import os
import signal
import sys
import warnings
from pathlib import Path

import pytest
import torch

os.environ.setdefault('MPLBACKEND', 'agg')   # no windows from the unit tests
os.environ.setdefault('CI', 'true')          # no progress bars
root = Path(__file__).resolve().parents[1]


def pytest_addoption(parser):
    parser.addoption('--slow', action='store_true', help="long fault runs, and notebook cells marked '#| slow'")
    parser.addoption('--tally', type=Path, help='JSON file for what the fault tests counted: tried, survived, lost')


@pytest.fixture(scope='session')
def slow(request): return request.config.getoption('--slow')


class Tally:
    "What the fault tests counted."
    def __init__(self): self.rows = []
    def count(self, fault, tried, lost):
        self.rows.append(dict(fault=fault, tried=tried, survived=tried-lost, lost=lost))

    @contextlib.contextmanager
    def one(self, fault):
        "One fault: lost if the body fails."
        lost = 1
        try:
            yield
            lost = 0
        finally: self.count(fault, 1, lost)


@pytest.fixture(scope='session')
def tally(request):
    "A `Tally`, written to `--tally` at the end."
    yield (out := Tally())
    if path := request.config.getoption('--tally'): path.write_text(json.dumps(out.rows, indent=1)+'\n')


@pytest.fixture
def clean_env():
    """An environment for child processes; nbdev's in-process runner leaves IN_TEST behind, which turns nbdev_export
    into a no-op"""
    return {k: v for k, v in os.environ.items() if k not in ('IN_TEST', 'MPLBACKEND')}


@pytest.fixture
def shell(capsys, monkeypatch):
    "`pca-nb` in this process, with its exit code: returns what it printed, or what it complained of if not `ok`"
    from pca_nb import cli

    def run(*words, ok=True):
        capsys.readouterr()
        monkeypatch.setattr(sys, 'argv', ['pca-nb', *map(str, words)])
        handler, usual = signal.getsignal(signal.SIGTERM), warnings.showwarning
        with pytest.raises(SystemExit) as end: cli.main()
        signal.signal(signal.SIGTERM, handler)
        warnings.showwarning = usual
        said = capsys.readouterr()
        assert (not end.value.code) == ok, said.out + said.err
        return said.out if ok else said.err
    return run


@pytest.fixture
def shared_data():
    "The folder of real data, or a skip that says how to get it"
    folder = Path(os.environ.get('PCA_NB_DATA', ''))
    if not (folder/'cifar10-test.parquet').exists():
        pytest.skip('no cifar10-test.parquet: point PCA_NB_DATA at a folder that has it')
    return folder


@pytest.fixture
def g():
    return torch.Generator().manual_seed(0)
