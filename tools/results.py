"""The list of stored results, nbs/results/README.md: what made each file, who reads it, on which machine and when.

Device and version come from the rows themselves, readers from the notebooks, dates from git.
"""
import json
import re
import subprocess
from pathlib import Path

from pca_nb.tables import SCALES

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT/'nbs'/'results'
MAKE = 'python nbs/results/make'
MADE = {  # file -> the command that makes it; `HOME` is a grid's folder, `--home` of `pca-nb table`
    'before-after.json': f'`{MAKE}/e01_before_after.py BEFORE`, where BEFORE is a checkout of commit 4502719',
    'chosen.json': f'`{MAKE}/f05_gallery_pca.py HOME`',
    'cifar10-w64.jsonl': 'an earlier stage (a network of width 64, one scoring run); no command of this version',
    'cifar10.jsonl': '`pca-nb table TABLE --scale cifar10 --rows nbs/results/cifar10.jsonl`',
    'combining.json': f'`{MAKE}/combining.py`',
    'cover-time.json': f'`{MAKE}/cover_time.py`',
    'crop-clouds.npz': f'`{MAKE}/t13_crop_entropy.py clouds HOME DATA 0`',
    'digits-again.jsonl': '`pca-nb table TABLE --scale quick --rows nbs/results/digits-again.jsonl` for t05, t06, t07: '
                          'the rows of version 0.1 once more',
    'digits-scores.npz': '`pca-nb score digits --size 16 --out nbs/results/digits-scores.npz`',
    'digits.jsonl': '`pca-nb table TABLE --scale quick --rows nbs/results/digits.jsonl`',
    'duplicates.json': f'`{MAKE}/duplicates.py`',
    'engine.jsonl': '`pca_nb.reference_loop.same_accuracy` for three engines and eight seeds; no command is kept',
    'entropy-sets.npz': f'`{MAKE}/t13_crop_entropy.py sets HOME ROWS`',
    'entropy.jsonl': f'`{MAKE}/t13_crop_entropy.py STEP HOME DATA …`',
    'evaluators.json': f'`{MAKE}/evaluators.py`',
    'faults.json': '`python -m pytest --slow --tally nbs/results/faults.json`',
    'first-line.json': f'`{MAKE}/first_line.py --before CHECKOUT`; the checkout is that of 2026-12-01',
    'gallery.npz': f'`{MAKE}/f09_galleries.py HOME`',
    'grid-time.json': f'`{MAKE}/e01_grid_time.py BEFORE`, where BEFORE is a checkout of commit 4502719',
    'imagenette.jsonl': '`pca-nb table TABLE --scale imagenette --rows nbs/results/imagenette.jsonl`; for x01-size '
                        '`--scale imagenette32`, `imagenette64`, `imagenette128`',
    'launches.json': f'`{MAKE}/e01_launches.py BEFORE`, where BEFORE is a checkout of commit 4502719',
    'own-images.json': f'`{MAKE}/defaults_own_images.py`',
    'pixels.json': f'`{MAKE}/t25_pixels.py`',
    'reading.json': f'`{MAKE}/reading.py`',
    'rehearsal.json': f'`{MAKE}/e02_rehearsal.py ROOT HOME`, where ROOT is made by `synthetic_imagenet.py`',
    'relabel.json': f'`{MAKE}/t26_relabel_profile.py`',
    'scale.json': f'`{MAKE}/4_more_machines.py --workers 1,2 --processes 1,2`',
    'rows-before.json': '`pca_nb.evidence.count_rows` of the rows on 2026-12-01; no command is kept',
    'score-shapes.json': f'`{MAKE}/f06_score_shapes.py HOME`',
    'softness.json': f'`{MAKE}/x01_why_composites_fail.py HOME`',
    'speed-h100.json': '`pca-nb speed --only training --device cuda --out nbs/results/speed-h100.json`',
    'speed.json': '`pca-nb speed --out nbs/results/speed.json`',
    'stages.json': f'`{MAKE}/t25_stages.py`',
    'tinyimagenet10.jsonl': '`pca-nb table x01-place --scale tiny10 --rows nbs/results/tinyimagenet10.jsonl`',
    'tinyimagenet100.jsonl': '`pca-nb table TABLE --scale tiny --rows nbs/results/tinyimagenet100.jsonl`; for '
                             'x01-place `--scale tiny100`',
    'units.json': f'`{MAKE}/distill_units.py HOME`',
    'untrained.json': f'`{MAKE}/t20_noise.py`',
    'verdicts-before.json': 'read off the tables of the experiment notebooks on 2026-12-01, reasons written by hand; '
                            'no command',
}
JUDGED = {'entropy.jsonl', 'relabel.json', 'score-shapes.json', 'stages.json'}   # besides rows, claims are judged by
INTRO = """# Stored results

Every number of the notebooks and the README is read from one of these files.
A row of a `.jsonl` file is one run: its configuration, the hash of it, what was measured, and on what.
Rows that are there are not made again, so a command adds what is missing.
Scripts in `make/` are named after the notebook that reads their file.
`python nbs/results/make/synthetic_imagenet.py OUT` makes no file of these, but a synthetic ImageNet for rehearsals.

Devices and versions are those that the files name ("–": the file names none).
Dates are the first and the last commit that changed a file; on 2026-11-27 all rows got new keys, not new numbers.
Made by `python tools/results.py`; do not edit.
"""


def files():
    return sorted(p for p in RESULTS.iterdir() if p.suffix in ('.json', '.jsonl', '.npz') and p.name[0] != '.')


def records(path):
    "Return the parts of a file that may name a machine."
    if path.suffix == '.jsonl':
        return [json.loads(line) for line in path.read_text().splitlines()]
    if path.suffix == '.json':
        content = json.loads(path.read_text())
        if isinstance(content, dict):
            return [content, content.get('machine', {})]
        return [row for row in content if isinstance(row, dict)]
    return []


def machines(path):
    "Return the devices of a file, each with its versions of torch."
    found = {}
    for row in records(path):
        if 'device' in row:
            found.setdefault(row['device'], set()).add(row['torch'].split('+')[0])
    return '; '.join(f"{device}, torch {', '.join(sorted(versions))}" for device, versions in found.items()) or '–'


def code(notebook):
    cells = json.loads(notebook.read_text(encoding='utf-8'))['cells']
    return '\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'code')


def reads(text, path):
    "Does a notebook's code name the file, or read rows of its data set?"
    if path.name in text:
        return True
    if 'judge_all(' in text and path.name in JUDGED | {f'{s.data}.jsonl' for s in SCALES.values()}:
        return True
    if path.name == 'entropy.jsonl':
        return 'read_entropy(' in text
    scales = [name for name, scale in SCALES.items() if f'{scale.data}.jsonl' == path.name]
    for given in re.findall(r"read_table\('[\w-]+', ([^,]+),", text):
        if given.startswith("'"):
            names = [given.strip("'")]
        elif given.startswith("f'"):
            start = given[2:given.index('{')]
            names = [name for name in scales if re.fullmatch(start+r'\d+', name)]
        else:                                         # a variable: any scale that the notebook names
            names = re.findall(r"'(\w+)'|\b(\w+)=", text)
            names = [a or b for a, b in names]
        if set(names) & set(scales):
            return True
    return False


def readers(path, notebooks):
    links = []
    for notebook, text in notebooks.items():
        if reads(text, path):
            links.append(f"[{notebook.stem}](../{notebook.relative_to(ROOT/'nbs').as_posix()})")
    return ', '.join(links) or 'tests'


def dates(path):
    log = subprocess.run(['git', 'log', '--format=%ad', '--date=short', '--', str(path)], cwd=ROOT,
                         capture_output=True, text=True, check=True).stdout.split()
    if not log:
        return 'not committed'
    return log[0] if log[0] == log[-1] else f'{log[-1]} to {log[0]}'


def notebooks():
    "Return the code of every notebook, hidden folders left out."
    paths = sorted((ROOT/'nbs').rglob('*.ipynb'))
    return {p: code(p) for p in paths if not any(part[0] in '._' for part in p.relative_to(ROOT).parts)}


def main():
    text = notebooks()
    lines = [INTRO, '| file | made by | read by | device | date |', '|---|---|---|---|---|']
    for path in files():
        columns = [f'`{path.name}`', MADE[path.name], readers(path, text), machines(path), dates(path)]
        lines.append(f"| {' | '.join(columns)} |")
    (RESULTS/'README.md').write_text('\n'.join(lines) + '\n', encoding='utf-8')


if __name__ == '__main__':
    main()
