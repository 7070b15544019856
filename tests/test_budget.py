"A time budget: no job begins late, none is lost, and the order is kept; on clocks that are made up."
import sys
import time
from concurrent.futures import Future
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings, strategies as st

from pca_nb import cli, grid
from pca_nb.budget import Budget, do_in_time, Job, PRIORITIES, Schedule, seeds_first
from pca_nb.grid import Grid, process_pool, run_grid, RunsFailed
from pca_nb.result_store import ResultStore
from pca_nb.run import run_one
from pca_nb.runs import run_cfg
from pca_nb.terminal import out
from pca_nb.timings import cell_of, Cost, Timings

CELLS = 4


class World:
    "Workers, their clock and a list of what they did. Nobody waits: `sleep` goes to the next end of a job."
    def __init__(self, workers, durations):
        self._max_workers, self.durations = workers, durations
        self.now, self.began = 0, []

    def monotonic(self): return self.now
    def sleep(self, _): self.now = min(end for _, _, end in self.began if end > self.now)

    def submit(self, call, make, job):
        end = self.now+self.durations[job]
        self.began.append((job, self.now, end))
        return SimpleNamespace(done=lambda: self.now >= end, result=lambda: None, cancel=lambda: None)


def job(name, cost=None, needs=()):
    return Job(name, print, (name,), cost or Cost((name,), 1), tuple(needs), name, cfg=name if 'row' in name else None)


@st.composite
def worlds(draw):
    "Rows that share scores, teachers and sets; a set needs the scores. Seconds are whole, so that sums are exact."
    scores, teacher = job('scores'), job('teacher')
    made = job('set', needs=[scores])
    whole = st.integers(1, 40)
    choices = st.sampled_from([(), (scores,), (teacher,), (scores, teacher), (scores, made), (scores, teacher, made)])
    rows = [job(f'row {i}', needs=draw(choices)) for i in range(draw(st.integers(1, 8)))]
    durations = {j.name: draw(whole) for j in (scores, teacher, made, *rows)}
    return rows, durations, draw(st.integers(1, 3)), draw(st.integers(1, 300))


def known(durations):
    timings = Timings(least=1)
    for name, seconds in durations.items(): timings.learn(Cost((name,), 1), seconds)
    return timings


def played(rows, timings, durations, workers, seconds):
    world = World(workers, durations)
    schedule = Schedule(rows, Budget(seconds/60, say=lambda words: None, clock=world), timings)
    for _ in do_in_time(schedule, world): pass
    return world, schedule


@settings(max_examples=300, deadline=None)
@given(worlds())
def test_nothing_ends_late_when_every_duration_is_known(case):
    rows, durations, workers, seconds = case
    world, schedule = played(rows, known(durations), durations, workers, seconds)
    assert all(end <= seconds for _, _, end in world.began)
    for _, start, _ in world.began:
        assert sum(a <= start < b for _, a, b in world.began) <= workers
    names = [name for name, _, _ in world.began]
    assert len(set(names)) == len(names)
    begun = {name: (start, end) for name, start, end in world.began}
    for row in rows:   # after all that it needs
        if row.name in begun: assert all(begun[n.name][1] <= begun[row.name][0] for n in row.needs)
    if 'set' in begun: assert begun['scores'][1] <= begun['set'][0]
    assert [r.name for r in schedule.left] == [r.name for r in rows if r.name not in begun]


@settings(max_examples=300, deadline=None)
@given(worlds())
def test_a_job_begins_only_if_no_earlier_row_could_use_the_worker(case):
    "Judged from the list of what began alone: rows before it had begun, did not fit, or waited for a running job."
    rows, durations, workers, seconds = case
    world, _ = played(rows, known(durations), durations, workers, seconds)
    for k, (name, now, _) in enumerate(world.began):
        ends = {n: end for n, _, end in world.began[:k]}   # of what had begun before
        for row in rows:
            if row.name == name or name in [n.name for n in row.needs]: break
            if row.name in ends: continue
            jobs = [j for j in (*row.needs, row) if ends.get(j.name, now+1) > now]
            needed = sum(ends[j.name]-now if j.name in ends else durations[j.name] for j in jobs)
            waits = [j for j in jobs if j.name not in ends and not any(n in jobs for n in j.needs+(
                row.needs if j is row else ()))]
            assert needed > seconds-now or not waits, f'{row.name} could have used the worker that {name} got'


@settings(max_examples=200, deadline=None)
@given(worlds())
def test_everything_is_made_when_there_is_time(case):
    rows, durations, workers, _ = case
    world, schedule = played(rows, known(durations), durations, workers, 10**4)
    assert not schedule.left and {r.name for r in rows} <= {name for name, _, _ in world.began}
    wanted = {n.name for r in rows for n in r.needs} | {r.name for r in rows}
    assert sorted(name for name, _, _ in world.began) == sorted(wanted)


@settings(max_examples=200, deadline=None)
@given(worlds())
def test_one_worker_makes_no_scores_or_teacher_that_no_row_uses(case):
    rows, durations, _, seconds = case
    world, schedule = played(rows, known(durations), durations, 1, seconds)
    begun = {name for name, _, _ in world.began}
    used = {n.name for r in rows if r.name in begun for n in r.needs}
    assert begun-{r.name for r in rows} <= used


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, CELLS-1), st.integers(1, 60)), min_size=1, max_size=12), st.integers(1, 3),
       st.integers(1, 300))
def test_estimates_from_what_has_ended_are_kept_to(jobs, workers, seconds):
    """Durations differ within a cell and are not known: at its beginning no job's estimate, made again here from the
    jobs that had ended, exceeds the rest."""
    rows = [job(f'row {i}', Cost((f'cell {cell}', 'all'), 1)) for i, (cell, _) in enumerate(jobs)]
    durations = {r.name: took for r, (_, took) in zip(rows, jobs)}
    world, schedule = played(rows, Timings(), durations, workers, seconds)
    cells = {r.name: cell for r, (cell, _) in zip(rows, jobs)}
    for name, now, _ in world.began:
        ended = sorted((end, n) for n, _, end in world.began if end <= now)
        same = [durations[n] for _, n in ended if cells[n] == cells[name]]
        any_cell = [durations[n] for _, n in ended]
        # ends at one time are noted in any order, so the larger window may hold one more
        if len(same) <= 5 and len(any_cell) <= 5: assert max(same if len(same) >= 3 else any_cell or [0]) <= seconds-now
        assert now < seconds
    assert len(world.began)+len(schedule.left) == len(rows)


def test_the_first_job_begins_without_an_estimate_and_says_so_once():
    rows, said = [job(f'row {i}', Cost((f'row {i}', 'all'), 1)) for i in range(3)], []
    world = World(2, {r.name: 50 for r in rows})
    schedule = Schedule(rows, Budget(1, say=said.append, clock=world), Timings())
    assert [j.name for j in do_in_time(schedule, world)] == ['row 0', 'row 1']
    schedule.close(3, 'run it again')
    assert said == ['row 0 begins without an estimate: nothing was timed on this machine yet',
                    'no time for 1 of 3 runs, about 50 s of work and 50 s for the shortest: run it again']
    assert schedule.budget.left == ['row 2']


def test_what_a_running_job_has_done_already_counts():
    "At 30 s the scores take 20 s more: with the teacher's 40 and the row's 10 that is just what is left of 100."
    scores, teacher = job('scores'), job('teacher')
    rows = [job('row 0'), job('row 1', needs=[scores, teacher])]
    durations = {'row 0': 30, 'scores': 50, 'teacher': 40, 'row 1': 10}
    world, _ = played(rows, known(durations), durations, 2, 100)
    assert world.began == [('row 0', 0, 30), ('scores', 0, 50), ('teacher', 30, 70), ('row 1', 70, 80)]


# ---- order ----
@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(['random', 'tiles', 'noise']), st.integers(1, 2), st.integers(0, 4)),
                max_size=20))
def test_every_cell_gets_its_first_seed_before_any_gets_its_second(runs):
    "Against a plain loop: in every round the first run of each cell that is still there."
    cfgs = [run_cfg('digits', *r) for r in runs]
    rest, plain = list({c.key: c for c in cfgs}.values()), []
    while rest:
        met = set()
        for c in list(rest):
            cell = c.method, c.ipc
            if cell in met: continue
            met.add(cell)
            plain.append(c)
            rest.remove(c)
    assert seeds_first(cfgs) == plain and PRIORITIES['given'](cfgs) == cfgs


def test_cells_are_those_of_a_table():
    "Also with scores and teachers of their own per seed; a change of anything else is another cell."
    def cell(*a, **kw): return cell_of(run_cfg('imagenette', *a, **kw).to_dict())
    for method, recipe in (('pca', 'hard'), ('sre2l', 'soft'), ('random', 'gvbsm')):
        assert len({cell(method, 10, seed, recipe) for seed in range(5)}) == 1
    assert len({cell('pca', 10), cell('pca', 1), cell('random', 10), cell('pca', 10, arch='resnet18')}) == 4


# ---- grids ----
def short(method, seed=0, ipc=2):
    cfg = run_cfg('digits', method, ipc, seed)
    scoring = cfg.scoring
    if scoring: scoring = replace(scoring, recipe=replace(scoring.recipe, epochs=2, batch=256), stop_epoch=0)
    return replace(cfg, recipe=replace(cfg.recipe, epochs=4, eval_every=2), scoring=scoring)


CFGS = [short(m, s) for m in ('random', 'pca') for s in (0, 1)]


def numbers(frame):
    return frame[['key', 'top1', 'nll', 'loss', 'set']].sort_values('key').values.tolist()


@pytest.fixture
def store(tmp_path): return ResultStore(tmp_path/'r.jsonl')


def rows_as_clock(store):
    "A clock on which every row takes 20 s and nothing else takes any time."
    return SimpleNamespace(monotonic=lambda: 20.*len(store.all()), sleep=time.sleep)


def test_a_cut_grid_goes_on_where_it_stopped(store, tmp_path):
    "Seed 0 of both methods first; the second call makes the rest, and all rows are those of a grid without a budget."
    said = []
    budget = Budget(.6, say=said.append, clock=rows_as_clock(store))   # 36 s
    first = run_grid(CFGS, store, tmp_path, device='cpu', minutes=budget)
    assert first.seed.tolist() == [0] and budget.left == [CFGS[2], CFGS[1], CFGS[3]]
    assert store.missing(CFGS) == [CFGS[1], CFGS[2], CFGS[3]] and 'no time for 3 of 4 runs' in said[-1]
    assert f'rows in {store.path} are kept' in said[-1]
    second = run_grid(CFGS, store, tmp_path, device='cpu', minutes=10**6)
    plain = run_grid(CFGS, ResultStore(tmp_path/'p.jsonl'), tmp_path/'p', device='cpu')
    assert numbers(second) == numbers(plain) and second.key.tolist() == [c.key for c in CFGS]


def test_what_a_scoring_run_took_is_known_to_the_next_call(store, tmp_path):
    run_grid([CFGS[2]], store, tmp_path, device='cpu', minutes=10**6)
    kept = ResultStore(tmp_path/'timings.jsonl').all()
    assert [k['key'] for k in kept] == [Grid(tmp_path).score_file(CFGS[2]).name] and kept[0]['seconds'] > 0


def test_a_cut_keeps_the_checkpoints_of_what_is_left(store, tmp_path):
    place = Grid(tmp_path)
    run_grid(CFGS[:1], store, tmp_path, device='cpu')
    for c in CFGS[:2]: place.ckpt_file(c).touch()   # of a run that was killed after its row, and of one before
    ended = Budget(1, say=lambda words: None, clock=SimpleNamespace(monotonic=iter([0, *[100]*99]).__next__))
    assert len(run_grid(CFGS[:2], store, tmp_path, device='cpu', minutes=ended)) == 1
    assert [place.ckpt_file(c).exists() for c in CFGS[:2]] == [False, True] and ended.left == CFGS[1:2]


def test_a_failed_scoring_run_fails_its_rows_and_no_others(store, tmp_path, monkeypatch):
    def broken(*a): raise FloatingPointError('the loss is nan')
    monkeypatch.setattr(grid, 'record_dynamics', broken)
    with pytest.raises(RunsFailed, match='2 of 4 runs failed, the others are in .*r.jsonl; the first, digits pca'):
        run_grid(CFGS, store, tmp_path, device='cpu', minutes=10**6)
    assert sorted(r['seed'] for r in store.all()) == [0, 1]


def test_a_full_disk_and_ctrl_c_end_a_budgeted_grid_in_words(store, tmp_path, monkeypatch):
    def full(*a, **kw): raise OSError(28, 'No space left')
    def interrupted(*a, **kw): raise KeyboardInterrupt
    for broken, error, words in ((full, OSError, 'No space left'), (interrupted, KeyboardInterrupt, '0 of 4 runs fin')):
        monkeypatch.setattr(grid, 'run_one', broken)
        with pytest.raises(error, match=words): run_grid(CFGS, store, tmp_path, device='cpu', minutes=10**6)


def test_two_processes_under_a_budget_lose_nothing(store, tmp_path):
    budget = Budget(.6, say=lambda words: None, clock=rows_as_clock(store))
    with process_pool(2) as ex:
        first = run_grid(CFGS, store, tmp_path, executor=ex, device='cpu', minutes=budget)
        assert 0 < len(first) < 4 and sorted([*first.key, *(c.key for c in budget.left)]) == sorted(c.key for c in CFGS)
        second = run_grid(CFGS, store, tmp_path, executor=ex, device='cpu', minutes=10**6)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    plain = run_grid(CFGS, ResultStore(tmp_path/'p.jsonl'), tmp_path/'p', device='cpu')
    torch.set_num_threads(threads)
    assert numbers(second) == numbers(plain) and store.path.read_text().count('\n') == 4


def test_an_executor_that_does_not_say_how_many_it_runs_is_refused_before_any_work(store, tmp_path):
    class Cluster:
        def submit(self, f, *a):
            done = Future()
            done.set_result(f(*a))
            return done
    with pytest.raises(ValueError, match='Cluster does not say how many runs it makes at once: give `minutes=Budget'):
        run_grid(CFGS, store, tmp_path, executor=Cluster(), device='cpu', minutes=5)
    assert not (tmp_path/'scores').exists()
    frame = run_grid(CFGS, store, tmp_path, executor=Cluster(), device='cpu', minutes=Budget(10**6, workers=3))
    assert len(frame) == 4


# ---- the shell ----
@pytest.fixture
def ended(monkeypatch, capsys):
    "`pca-nb` in this process with short runs, each of 20 s on its clock: (exit code, what it printed)."
    def quick(cfg, *a, **kw):
        row = run_one(replace(cfg, recipe=replace(cfg.recipe, epochs=2, eval_every=2)), *a, **kw)
        return row | dict(key=cfg.key, cfg=cfg.to_dict())
    monkeypatch.setattr(grid, 'run_one', quick)

    def run(rows, *words):
        clock = rows_as_clock(ResultStore(rows))
        monkeypatch.setattr(cli, 'time_budget', lambda m: Budget(m, say=out.print, clock=clock) if m is not None else m)
        monkeypatch.setattr(sys, 'argv', ['pca-nb', *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end: cli.main()
        said = capsys.readouterr()
        return end.value.code or 0, said.out+said.err
    return run


def test_a_benchmark_in_slots(tmp_path, ended):
    "Two slots for four runs: 75, then 0; then nothing is left to do."
    rows = tmp_path/'rows.jsonl'
    words = ('benchmark', 'digits', '--methods', 'random,tiles', '--ipc', 1, '--seeds', 2, '--rows', rows, '--home',
             tmp_path, '--workers', 1, '--device', 'cpu', '--minutes', 1)
    code, said = ended(rows, *words)
    assert code == 75 and '4 runs, 4 to make' in said and 'no time for 1 of 4 runs, about 20 s of work' in said
    assert 'IPC 1' in said and f'rows: {rows}' in said   # the table of what there is
    code, said = ended(rows, *words)
    assert code == 0 and '4 runs, 1 to make' in said and 'no time' not in said
    assert len(ResultStore(rows).all()) == 4
    code, said = ended(rows, *words)
    assert code == 0 and '4 runs, 0 to make' in said


def test_a_table_in_slots(tmp_path, ended):
    rows = tmp_path/'rows.jsonl'
    words = ('table', 't24', '--ipc', 1, '--seeds', 2, '--rows', rows, '--home', tmp_path, '--workers', 1, '--device',
             'cpu')
    code, said = ended(rows, *words, '--minutes', .2)   # 12 s: one row, since nothing was timed yet
    assert code == 75 and 'begins without an estimate' in said and len(ResultStore(rows).all()) == 1
    assert ResultStore(rows).all()[0]['seed'] == 0
    code, said = ended(rows, *words, '--minutes', .2)   # the row says what a run takes here: less than 12 s
    assert code == 75 and len(ResultStore(rows).all()) == 2


def test_a_slot_without_time_prints_no_table(tmp_path, ended, monkeypatch):
    monkeypatch.setattr(Budget, 'rest', property(lambda self: 0.))
    words = ('benchmark', 'digits', '--methods', 'random', '--ipc', 1, '--rows', tmp_path/'r', '--home', tmp_path)
    code, said = ended(tmp_path/'r', *words, '--workers', 1, '--minutes', 1)
    assert code == 75 and 'no time for 3 of 3 runs, about an unknown time' in said and '┏' not in said
    code, said = ended(tmp_path/'demo.jsonl', 'demo', '--home', tmp_path, '--workers', 1, '--minutes', 1)
    assert code == 75 and 'no time for 42 of 42 runs' in said and not (tmp_path/'demo.html').exists()


@pytest.mark.parametrize('minutes', ['0', '-3', 'nan'])
def test_minutes_that_are_no_time_are_refused(minutes, tmp_path, shell):
    for command in ('demo', 'table t05', 'benchmark digits'):
        words = shell(*command.split(), '--home', tmp_path/'h', '--minutes', minutes, ok=False)
        assert f'minutes={float(minutes)}: give a time above 0' in words and not (tmp_path/'h').exists()
