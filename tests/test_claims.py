"The ledger: every claim has a verdict, every verdict follows from rows, and every page says what the ledger says."
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from scipy.stats import ttest_rel

from pca_nb.evidence import places, stored_rows
from pca_nb.ledger import judge_all, judge_claim, ledger, place_columns, read_ledger, write_ledger
from pca_nb.ledger_pages import changes, findings, section_table
from pca_nb.paper import read_claims
from pca_nb.result_store import ResultStore
from pca_nb.tables import runs_for, SCALES
from pca_nb.verdicts import Cells, combine_verdicts, judge_part, KINDS, statements, VERDICTS

root = Path(__file__).resolve().parents[1]
results = root/'nbs'/'results'
experiments = root/'nbs'/'experiments'
claims = read_claims()
HOLDS, REVERSED, UNDECIDED, MISSING = VERDICTS


@pytest.fixture(scope='module')
def judged():
    return judge_all(results)


def test_fifty_seven_of_fifty_seven(judged):
    table = ledger(judged)
    assert [no for no in table.index if isinstance(no, int)] == list(range(1, 58))
    columns = [p.name for p in place_columns(table)]
    assert set(table[columns].values.ravel()) <= set(VERDICTS)
    untested = (table[columns] == MISSING).all(axis=1)
    assert (table.reason[untested] != '').all(), 'a claim without a verdict says why'
    assert (table.reason[~untested] == '').all()


def test_the_ledger_that_travels_is_what_the_rows_give(judged, tmp_path):
    write_ledger(ledger(judged), tmp_path/'ledger.csv')
    kept = root/'pca_nb'/'data'/'ledger.csv'
    assert (tmp_path/'ledger.csv').read_text() == kept.read_text(), 'run `make claims`'
    assert read_ledger().astype(str).equals(ledger(judged).astype(str))


def test_every_verdict_follows_from_its_comparisons(judged):
    "Counted here in other words than the rule's own: lower ends above 0, upper ends below."
    for row in judged.itertuples():
        claim = next(c for c in claims['claim']+claims['own'] if c['no'] == row.no)
        if row.verdict == MISSING or {p['kind'] for p in claim['parts']} != {'order'}: continue
        if any('slack' in p for p in claim['parts']): continue
        low, high = ([c[end] for c in row.comparisons] for end in ('lo', 'hi'))
        above, below = sum(v > 0 for v in low), sum(v < 0 for v in high)
        want = HOLDS if above == len(low) else REVERSED if not above and below >= len(low)/2 else UNDECIDED
        assert row.verdict == want, (row.no, row.place)


# --- hand-made rows, every kind

def cells(**numbers):
    "`a_10=(1,2,3)`: three seeds of `a` at IPC 10"
    lines = [(name.rsplit('_', 1)[0], int(name.rsplit('_', 1)[1]), seed, float(v))
             for name, values in numbers.items() for seed, v in enumerate(values)]
    return Cells(pd.DataFrame(lines, columns=['label', 'ipc', 'seed', 'value']), {'both': ['a', 'b']}, 10.)


LOW, MID, HIGH, WIDE = (10, 11, 12), (20, 21, 22.5), (30, 31.5, 32), (0, 60, 15)
ORDER = dict(kind='order', of=['a > b'])
RISES = dict(kind='rises', of=['a - b'])
WITHIN = dict(kind='within', of=['a > b'], margin=3.)
FIRST = dict(kind='first', of=['a > b | c'], needs=['b'])
MOST = dict(kind='most', of=['a > b | c | d'])
RANK = dict(kind='rank', of=['a falls with b'])
VALUE = dict(kind='value', of=['a'], paper={'10': 31.}, margin=4.)
RISING, FALLING, NEITHER = range(9), range(9, 0, -1), (3, 1, 4, 1.5, 5, 9, 2, 6, 5.5)


@pytest.mark.parametrize('part, numbers, want', [
    (ORDER, dict(a_10=HIGH, b_10=LOW), HOLDS), (ORDER, dict(a_10=LOW, b_10=HIGH), REVERSED),
    (ORDER, dict(a_10=WIDE, b_10=LOW), UNDECIDED), (ORDER, dict(a_10=HIGH), MISSING),
    (ORDER, dict(a_10=HIGH, b_50=LOW), MISSING),                                    # never at one budget
    (ORDER, dict(a_10=(30,), b_10=(10,)), UNDECIDED),                               # one seed has no interval
    (ORDER, dict(a_10=HIGH, b_10=LOW, a_50=LOW, b_50=HIGH), UNDECIDED),             # budgets disagree
    (ORDER | dict(slack=30), dict(a_10=LOW, b_10=HIGH), HOLDS),
    (ORDER | dict(at_least=50), dict(a_10=HIGH, b_10=LOW), MISSING),
    (dict(kind='order', of=['a > chance']), dict(a_10=HIGH), HOLDS),
    (dict(kind='order', of=['a > chance']), dict(a_10=(1, 1.5, 2)), REVERSED),
    (dict(kind='order', of=['@both > c']), dict(a_10=LOW, b_10=HIGH, c_10=(1, 2, 3)), HOLDS),
    (dict(kind='order', of=['0.1*a + 0.9*chance > b']), dict(a_10=HIGH, b_10=MID), REVERSED),
    (RISES, dict(a_10=MID, b_10=LOW, a_50=HIGH, b_50=LOW), HOLDS),
    (RISES, dict(a_10=HIGH, b_10=LOW, a_50=MID, b_50=LOW), REVERSED),
    (RISES, dict(a_10=MID, b_10=LOW, a_50=WIDE, b_50=LOW), UNDECIDED), (RISES, dict(a_10=MID, b_10=LOW), MISSING),
    (WITHIN, dict(a_10=LOW, b_10=(11, 12, 13.5)), HOLDS), (WITHIN, dict(a_10=HIGH, b_10=LOW), REVERSED),
    (WITHIN, dict(a_10=WIDE, b_10=LOW), UNDECIDED), (WITHIN, dict(b_10=LOW), MISSING),
    (FIRST, dict(a_10=HIGH, b_10=LOW, c_10=MID), HOLDS), (FIRST, dict(a_10=MID, b_10=LOW, c_10=HIGH), REVERSED),
    (FIRST, dict(a_10=HIGH, b_10=LOW, c_10=WIDE), UNDECIDED), (FIRST, dict(a_10=HIGH, c_10=LOW), MISSING),
    (dict(kind='first', of=['a < b | c']), dict(a_10=LOW, b_10=HIGH, c_10=MID), HOLDS),
    (MOST, dict(a_10=MID, b_10=LOW, c_10=LOW, d_10=HIGH), HOLDS),
    (MOST, dict(a_10=MID, b_10=LOW, c_10=HIGH, d_10=HIGH), REVERSED),
    (MOST, dict(a_10=MID, b_10=LOW, c_10=WIDE, d_10=HIGH), UNDECIDED), (MOST, dict(a_10=MID), MISSING),
    (RANK, dict(a_10=FALLING, b_10=RISING), HOLDS), (RANK, dict(a_10=RISING, b_10=RISING), REVERSED),
    (RANK, dict(a_10=NEITHER, b_10=RISING), UNDECIDED), (RANK, dict(a_10=RISING), MISSING),
    (VALUE, dict(a_10=HIGH), HOLDS), (VALUE, dict(a_10=LOW), REVERSED), (VALUE, dict(a_10=WIDE), UNDECIDED),
    (VALUE, dict(a_50=HIGH), MISSING),
])
def test_a_verdict_of_every_kind(part, numbers, want):
    found = judge_part(part, cells(**numbers))
    assert combine_verdicts([[c['verdict'] for c in found]]) == want


def test_every_kind_has_been_tried():
    tried = {p['kind'] for p in (ORDER, RISES, WITHIN, FIRST, MOST, RANK, VALUE)}
    assert tried == set(KINDS) >= {p['kind'] for c in claims['claim'] for p in c['parts']}


def test_differences_are_taken_within_a_seed():
    "Seeds differ by far more than a from b; sorted otherwise, the same numbers decide nothing."
    a, b = (10, 40, 70), (8, 38.5, 67.5)
    assert judge_part(ORDER, cells(a_10=a, b_10=b))[0]['verdict'] == HOLDS
    assert judge_part(ORDER, cells(a_10=a, b_10=b[::-1]))[0]['verdict'] == UNDECIDED


def test_the_interval_is_that_of_a_paired_test():
    found = judge_part(ORDER, cells(a_10=HIGH, b_10=WIDE))[0]
    scipys = ttest_rel(HIGH, WIDE).confidence_interval(.95)
    assert [found['lo'], found['hi']] == pytest.approx([scipys.low, scipys.high])


def test_measurements_without_seeds_use_their_range():
    for end, want in ((1., HOLDS), (3., UNDECIDED)):
        frame = pd.DataFrame(dict(label=['a', 'b'], ipc=0, seed=0, value=[4., 1.], lo=[2., .5], hi=[8., end]))
        assert judge_part(ORDER, Cells(frame))[0]['verdict'] == want


# --- stored rows, changed

TINY = next(p for p in places() if p.name == 'tinyimagenet100-64')
FORGETTING = next(c for c in claims['claim'] if c['no'] == 16)      # random > forgetting-easyB: holds there


def changed_rows(folder, change):
    "A copy of the rows of Tiny-ImageNet-100, each as `change` returns it; `None` leaves it out."
    store = ResultStore(folder/'tinyimagenet100.jsonl')
    for row in ResultStore(results/'tinyimagenet100.jsonl').all():
        row = change({k: v for k, v in row.items() if k != 'check'})
        if row: store.add(row)
    return judge_claim(FORGETTING, TINY, folder, claims['groups'])


def test_rows_as_they_are(tmp_path):
    assert changed_rows(tmp_path, lambda row: row)['verdict'] == HOLDS


def test_a_flipped_row_changes_the_verdict(tmp_path):
    "One accuracy of a hundred rows: the interval is no longer clear of 0."
    def flip(row):
        return row | dict(top1=1.) if (row['method'], row['ipc'], row['seed']) == ('random', 10, 0) else row
    assert changed_rows(tmp_path, flip)['verdict'] == UNDECIDED


def test_rows_that_say_the_opposite_reverse_the_verdict(tmp_path):
    def flip(row): return row | dict(top1=row['top1']+40) if row['method'] == 'forgetting-easyB' else row
    assert changed_rows(tmp_path, flip)['verdict'] == REVERSED


def test_rows_that_are_gone_leave_a_reason(tmp_path):
    found = changed_rows(tmp_path, lambda row: None if row['method'] == 'forgetting-easyB' else row)
    assert found['verdict'] == MISSING and found['missing'] == ['random > forgetting, easiest, balanced']


def test_half_a_claim_is_not_tested():
    assert combine_verdicts([[HOLDS], []]) == MISSING
    assert combine_verdicts([[HOLDS], [HOLDS]]) == HOLDS


# --- the data file

def test_no_verdict_is_written_by_hand():
    may = {'no', 'section', 'short', 'says', 'paper', 'tested', 'shown', 'ours', 'tables', 'why_not', 'parts'}
    in_part = {'kind', 'of', 'source', 'each', 'margin', 'slack', 'at_least', 'needs', 'places', 'elsewhere', 'paper'}
    for claim in claims['claim'] + claims['own']:
        assert set(claim) <= may and claim['says'] and claim['short'] and claim['parts'], claim['no']
        for part in claim['parts']: assert set(part) <= in_part, claim['no']


NOT_YET = {'pca, resnet50', 'pca, resnet101'}    # networks of the paper that no table here has


def test_every_name_of_a_claim_is_a_name_of_its_tables():
    "A name that is misspelt would never find rows, and its claim would never be tested."
    for claim in claims['claim'] + claims['own']:
        for part in claim['parts']:
            if part.get('source', 'top-1') not in ('top-1', 'seconds'): continue
            labels = known(claim['tables'])
            written = Cells(pd.DataFrame(columns=['label', 'ipc', 'seed', 'value']), claims['groups'])
            for text in statements(part, labels):
                names = re.split(r' [-+<>|] ', re.sub(r'[\d.]+\*', '', text))
                names = [n for n in names if n != 'chance' and not re.fullmatch(r'[\d.]+', n)]
                plain = {m for n in names for m in written.members(n)}
                assert plain - labels <= NOT_YET, (claim['no'], plain - labels)
            assert set(part.get('needs', ())) <= labels, claim['no']


def known(tables, cache={}):    # noqa: B006
    "Every name that some tables give to a run, at any scale."
    for table in tables:
        if table not in cache:
            cache[table] = set()
            for scale in SCALES:
                try: cache[table] |= {label for label, _ in runs_for(table, scale)}
                except ValueError: pass                                  # no runs at this scale
    return set().union(*(cache[table] for table in tables))


def headings(path):
    text = '\n'.join(c.source for c in nbformat.read(path, 4).cells if c.cell_type == 'markdown')
    return {h.replace(' ', '-') for h in re.findall(r'^#+ +(.+?) *$', text, re.M)}


@pytest.mark.parametrize('claim', claims['claim'] + claims['own'], ids=lambda c: str(c['no']))
def test_links_lead_to_a_heading(claim):
    name, _, anchor = claim['shown'].partition('#')
    assert (experiments/name).is_file() and anchor in headings(experiments/name), claim['shown']


def test_one_name_is_one_protocol():
    "Two configurations under one name would be averaged: that is refused when rows are read."
    for tables in {tuple(c.get('tables', ())) for c in claims['claim'] + claims['own']}:
        for place in places(): stored_rows(place, results, tables)
    imagenette = next(p for p in places() if p.name == 'imagenette-64')
    with pytest.raises(ValueError, match="two rows of 'pca'"):      # under AdamW and, in Table 12, under SGD
        stored_rows(imagenette, results, ['t07', 't12'])


# --- pages

def linked(sentences): return [re.sub(r'\]\((experiments/)', r'](nbs/\1', s) for s in sentences]


def test_the_readme_says_what_the_ledger_says():
    text = (root/'README.md').read_text(encoding='utf-8')
    found = text.split('## What we found\n\n')[1].split('\n\n## ')[0]
    assert found == '\n'.join(f'- {s}' for s in linked(findings(read_ledger()))), 'run `make claims`'
    assert len(text.split()) <= 700


def test_the_findings_fit_whatever_the_verdicts_are():
    table = read_ledger()
    for k, verdict in enumerate(VERDICTS):
        mixed = table.assign(**{p.name: VERDICTS[(k+j) % 3] for j, p in enumerate(place_columns(table))})
        assert len(' - '.join(['', *findings(mixed)]).split()) <= 106, verdict


def test_the_page_says_what_the_ledger_says(judged):
    table = ledger(judged)
    page = nbformat.read(experiments/'claims.ipynb', 4)
    shown = [o.data['text/markdown'] for c in page.cells if c.cell_type == 'code' for o in c.outputs if 'data' in o
             and 'text/markdown' in o.data]
    text = '\n'.join(shown).replace(r'\|', '|')
    for section in dict.fromkeys(table.section):
        for no, line in section_table(table, section).iterrows():
            assert f"| {no} | {line['claim']}" in text and line.here in text, f'claim {no}: run `make claims`'


def test_a_verdict_that_changed_has_its_reason(judged):
    before = json.loads((results/'verdicts-before.json').read_text())
    assert len({(b['no'], b['place']) for b in before}) == len(before)
    assert set(b['verdict'] for b in before) <= set(VERDICTS)
    assert changes(judged, before).why.ne('–').all()


@pytest.mark.parametrize('fresh', [True, False])
def test_the_tool_says_whether_the_ledger_is_fresh(tmp_path, clean_env, fresh):
    for name in ('pca_nb', 'tools'): shutil.copytree(root/name, tmp_path/name)
    shutil.copytree(results, tmp_path/'nbs'/'results')
    kept = tmp_path/'pca_nb'/'data'/'ledger.csv'
    if not fresh: kept.write_text(kept.read_text().replace(',reversed,', ',holds,', 1))
    env = clean_env | {'PYTHONPATH': str(tmp_path)}
    r = subprocess.run([sys.executable, 'tools/claims.py', 'check'], cwd=tmp_path, env=env, capture_output=True,
                       text=True)
    assert (r.returncode == 0) == fresh, r.stderr
