"""The ledger that travels with the package, pca_nb/data/ledger.csv, from the stored rows and pca_nb/data/claims.toml.

claims.py [check]    write it; `check` only says whether it is what the rows give
"""
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from pca_nb.ledger import judge_all, ledger, write_ledger

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT/'pca_nb'/'data'/'ledger.csv'


def text():
    "What the rows give, as the file holds it."
    with TemporaryDirectory() as d:
        path = Path(d)/'ledger.csv'
        write_ledger(ledger(judge_all(ROOT/'nbs'/'results')), path)
        return path.read_text(encoding='utf-8')


if __name__ == '__main__':
    if sys.argv[1:] == ['check']:
        sys.exit(0 if KEPT.exists() and text() == KEPT.read_text(encoding='utf-8')
                 else 'the ledger is stale: run `make claims`')
    KEPT.write_text(text(), encoding='utf-8')
