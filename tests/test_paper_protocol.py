"""The protocol `paper` is the published setting: rethinkdc's files and code, and the paper's Tables 1 and 17."""
import importlib.util
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from pca_nb import evaluation
from pca_nb.core import Refused
from pca_nb.datasets import load_data
from pca_nb.defaults import default_recipe
from pca_nb.evaluation import Evaluation, teacher_run
from pca_nb.imageset import ImageSet
from pca_nb.models import make_model
from pca_nb.objective import LabelSource, param_groups
from pca_nb.paper import PAPER_RECIPES
from pca_nb.protocols import PAPER_PROTOCOL, recipe_for
from pca_nb.recipes import RECIPES, SOFT_LOSSES
from pca_nb.result_store import ResultStore
from pca_nb.runs import run_cfg

ZOOM = 256/224


def paper(name, n=10_000):
    "A recipe as the protocol gives it for any number of images"
    return recipe_for(RECIPES[name], PAPER_PROTOCOL, n)


# ---- rethinkdc's configuration files ----
@pytest.fixture(scope='module')
def package():
    spec = importlib.util.find_spec('rethinkdc')
    if not spec: pytest.skip('rethinkdc is not installed')
    return Path(spec.origin).parent


@pytest.fixture(scope='module')
def files(package):
    yaml = pytest.importorskip('yaml')
    read = {kind: yaml.safe_load((package/'dc_config'/f'standard_{kind}_config.yaml').read_text())
            for kind in ('hard', 'soft')}
    return read | dict(sgd=read['hard'] | dict(sgd_setting=True))   # its `--sgd-setting`


FIELDS = {  # key of a file -> what our recipe says of it
    'batch_size': lambda r: r.batch,
    'epochs': lambda r: r.epochs,
    'cos': lambda r: (r.schedule, r.lr_min, r.lr_every) == ('cosine', 0, 'epoch'),
    'adamw_lr': lambda r: r.lr if r.optimizer == 'adamw' else .001,                         # sgd has its own, below
    'adamw_weight_decay': lambda r: r.weight_decay if r.optimizer == 'adamw' else .01,
    'teacher_model': lambda r: PAPER_PROTOCOL.teacher_arch,
    'temperature': lambda r: r.temperature if r.soft else 20.,
    'mix_type': lambda r: 'None' if r.augment.mix == 'none' else r.augment.mix,
    'cutmix': lambda r: r.augment.mix_alpha,
    'hard_label': lambda r: not r.soft,
    'sgd_setting': lambda r: r.optimizer == 'sgd',
}
ELSEWHERE = {'gradient_accumulation_steps': 1, 'start_epoch': 0, 'workers': 4, 'wandb_project': 'demo-rethink-dc',
             'wandb_api_key': None, 'mode': 'fkd_save', 'hf_cache_dir': './hf_cache',
             'mixup': .8}   # of MixUp, which neither setting uses


def differences(file, recipe):
    "{key: (theirs, ours)} where a recipe is not the file's"
    return {key: (file[key], ours(recipe)) for key, ours in FIELDS.items() if file[key] != ours(recipe)}


@pytest.mark.parametrize('kind', ['hard', 'soft', 'sgd'])
def test_recipes_are_those_of_the_files(kind, files):
    assert set(files[kind]) == set(FIELDS) | set(ELSEWHERE)      # a key that nobody looked at fails
    assert {k: files[kind][k] for k in ELSEWHERE} == ELSEWHERE
    assert differences(files[kind], paper(kind)) == {}


@pytest.mark.parametrize('key, change', [
    ('batch_size', dict(batch=127)), ('epochs', dict(epochs=299)), ('cos', dict(schedule='smoothed')),
    ('cos', dict(lr_every='step')), ('adamw_lr', dict(lr=.01)), ('adamw_weight_decay', dict(weight_decay=0.)),
    ('temperature', dict(temperature=3.)), ('sgd_setting', dict(optimizer='sgd'))])
def test_the_comparison_with_the_files_can_fail(key, change, files):
    assert key in differences(files['soft'], replace(paper('soft'), **change))
    assert set(differences(files['soft'], paper('hard'))) == {'mix_type', 'hard_label'}


# ---- what the files leave to the code ----
@pytest.fixture(scope='module')
def code(package): return (package/'train_KD.py').read_text()


def only(pattern, text):
    found = re.findall(pattern, text)
    assert len(found) == 1, found
    return found[0]


def test_sgd_is_that_of_the_code(code):
    values = only(r'optim\.SGD\(model\.parameters\(\), lr=(\S+), momentum=(\S+), weight_decay=(\S+)\)', code)
    r = paper('sgd')
    assert tuple(map(float, values)) == (r.lr, r.momentum, r.weight_decay)
    assert r.decay_all and not r.nesterov


def test_views_and_test_images_are_those_of_the_code(code):
    side, low, high = only(r'RandomResizedCrop\((\d+), scale=\((\S+), (\S+)\)\)', code)
    assert 'RandomHorizontalFlip()' in code
    resized, cropped = only(r'transforms\.Resize\((\d+)\)', code), only(r'transforms\.CenterCrop\((\d+)\)', code)
    assert (int(side), int(cropped)) == (PAPER_PROTOCOL.size,)*2
    for kind in ('hard', 'sgd', 'soft'):
        views = paper(kind).augment
        assert views.crop_scale == (float(low), float(high)) and views.crop_ratio == (3/4, 4/3) and views.flip == .5
        assert paper(kind).eval_zoom == int(resized)/int(cropped)
    assert (views.mix_prob, views.mix_per, views.mix_labels) == (1, 'batch', False)   # of CutMix


def test_validations_are_those_of_the_code(code):
    every = int(only(r'if epoch % (\d+) == 0 or epoch == args\.epochs - 1:', code))
    assert {paper(name).eval_every for name in ('hard', 'sgd', 'soft')} == {every} == {50}


def test_rate_is_that_of_the_code(code):
    assert '0.5 * (1. + math.cos(math.pi * step / args.epochs)) if step <= args.epochs else 0' in code
    for kind in ('hard', 'sgd', 'soft'):
        r = paper(kind)
        for epoch in range(300):
            assert r.rate(epoch) == pytest.approx(r.lr*.5*(1+math.cos(math.pi*epoch/300)), abs=1e-12)


def test_soft_loss_is_that_of_the_code(code, g):
    assert '# loss = loss * args.temperature * args.temperature' in code
    r = paper('soft')
    student, teacher = torch.randn(7, 10, generator=g), torch.randn(7, 10, generator=g)
    theirs = F.kl_div(F.log_softmax(student/20, 1), F.softmax(teacher/20, 1), reduction='batchmean')
    torch.testing.assert_close(SOFT_LOSSES['kl'](student, teacher, r)/7, theirs)
    assert not r.t_squared and r.hard_weight == 0 and r.ema == 0


def test_weight_decay_spares_the_same_parameters(package):
    theirs = pytest.importorskip('rethinkdc.utils').get_parameters
    net = make_model('resnet18', 1000, 224, 0)
    def decaying(groups, usual): return {id(p) for group in groups for p in group['params']
                                         if group.get('weight_decay', usual) > 0}
    r = paper('hard')
    assert decaying(param_groups(net, r), 0) == decaying(theirs(net), r.weight_decay)
    assert len(decaying(param_groups(net, paper('sgd')), 0)) == len(list(net.parameters()))


# ---- Tables 1 and 17 ----
COLUMNS = {  # method -> batch, smooth rate, loss, weight of the hard label, EMA, shuffled patches, crop, teachers
    'SRe2L':  (1024, False, 'kl', 0, False, False, (.08, 1), 'single'),
    'CDA':    (128, False, 'kl', 0, False, False, (.08, 1), 'single'),
    'LPLD':   (128, False, 'kl', 0, False, False, (.08, 1), 'single'),
    'DWA':    (128, False, 'kl', 0, False, False, (.08, 1), 'single'),
    'RDED':   (100, True, 'kl', 0, False, True, (.5, 1), 'single'),
    'G-VBSM': (1024, False, 'mse', .1, False, False, (.08, 1), 'ensemble'),
    'EDC':    (100, True, 'mse', .1, True, True, (.5, 1), 'ensemble'),
}


def column(r, teachers):
    smooth = {'cosine': False, 'smoothed': True}[r.schedule]
    return (r.batch, smooth, r.loss, r.hard_weight, r.ema > 0, r.augment.patches.startswith('shuffle'),
            r.augment.crop_scale, 'ensemble' if teachers > 1 else 'single')


@pytest.mark.parametrize('method', COLUMNS)
@pytest.mark.parametrize('n', [10, 1000, 100_000])
def test_recipes_are_the_columns_of_tables_1_and_17(method, n):
    name, teachers = PAPER_RECIPES[method]
    r = paper(name, n)
    assert column(r, teachers) == COLUMNS[method]
    assert (r.epochs, r.optimizer, r.lr, r.augment.flip, r.augment.mix) == (300, 'adamw', .001, .5, 'cutmix')


def test_every_column_is_checked_and_the_check_can_fail():
    assert set(COLUMNS) == set(PAPER_RECIPES)
    for change in (dict(batch=512), dict(schedule='smoothed'), dict(loss='mse'), dict(hard_weight=.1), dict(ema=.99),
                   dict(augment=replace(RECIPES['soft'].augment, crop_scale=(.5, 1.))),
                   dict(augment=replace(RECIPES['soft'].augment, patches='shuffle4'))):
        assert column(replace(paper('soft'), **change), 1) != COLUMNS['CDA']


# ---- what a run under the protocol is ----
def test_every_recipe_is_unscaled_in_runs_and_evaluations():
    photos = ImageSet(torch.zeros(6, 3, 224, 224, dtype=torch.uint8), torch.arange(6) % 2, ('a', 'b'))
    for name, published in RECIPES.items():
        if published.given: continue
        r = run_cfg('imagenet', 'random', 10, recipe=name, protocol='paper').recipe
        plain = replace(published, augment=replace(published.augment, patches='none'), eval_zoom=ZOOM)
        assert r == plain == default_recipe(photos, name, protocol='paper')


@pytest.mark.filterwarnings('ignore::pca_nb.defaults.SlowNetworkWarning')
def test_a_teacher_is_a_resnet18_that_learns_as_the_scoring_run():
    photos = ImageSet(torch.zeros(6, 3, 32, 32, dtype=torch.uint8), torch.arange(6) % 2, ('a', 'b'))
    cfg = teacher_run(photos, device='cpu', protocol='paper')
    assert (cfg.arch, cfg.recipe) == ('resnet18', RECIPES['ccs'])


def test_scores_teacher_and_network_are_the_papers():
    c = run_cfg('imagenet', 'pca', 10, recipe='soft', protocol='paper')
    assert (c.arch, c.size, c.soft.teachers[0].arch) == ('resnet18', 224, 'resnet18')
    s = c.scoring
    assert (s.arch, s.size, s.el2n_epochs, s.stop_epoch) == ('resnet34', 224, 10, 10)
    r = s.recipe   # CCS's train_imagenet.py: 60 epochs, 256, SGD 0.1, cosine per step to 1e-4
    assert (r.epochs, r.batch, r.optimizer, r.lr, r.momentum, r.weight_decay) == (60, 256, 'sgd', .1, .9, 1e-4)
    assert (r.schedule, r.lr_every, r.lr_min, r.nesterov) == ('cosine', 'step', 1e-4, False)
    assert r.augment.crop_scale == (.08, 1.)


def test_the_default_protocol_is_what_it_was():
    for data in ('digits', 'cifar10', 'imagenet'):
        assert run_cfg(data, 'pca', 10).key == run_cfg(data, 'pca', 10, protocol='default').key
        assert run_cfg(data, 'pca', 10).key != run_cfg(data, 'pca', 10, protocol='paper').key


# ---- from a shell ----
@pytest.fixture
def tree(tmp_path):
    "Two classes of photographs that are not square, with margins that a zoom cuts off"
    for split, n in (('train', 3), ('val', 4)):
        for c, name in enumerate(('n01440764', 'n01443537')):
            for k in range(n):
                image = Image.new('RGB', (48, 36), (200, 30*k, 90*c))
                image.paste((0, 255-40*k, 90*c), (12, 9, 36, 27))
                (folder := tmp_path/split/name).mkdir(parents=True, exist_ok=True)
                image.save(folder/f'{k}.png')
    return tmp_path


SMALL = ('--size', 16, '--arch', 'convnet2-w32', '--device', 'cpu')   # a network and a side of one's own win


def test_evaluate_under_the_papers_protocol(tree, shell, tmp_path):
    said = shell('evaluate', tree/'train', '--test', tree/'val', '--seeds', 1, '--home', tmp_path/'home', '--protocol',
                 'paper', *SMALL)
    assert 'convnet2-w32, hard: 300 epochs, batch 128' in said
    [row] = ResultStore(tmp_path/'home'/'evaluate.jsonl').all()
    assert row['cfg']['eval_zoom'] == ZOOM and row['cfg']['batch'] == 128 and row['cfg']['eval_every'] == 50
    held = load_data(tree/'val', 'test', 16, ZOOM)                        # it was tested on zoomed images
    job = Evaluation(load_data(tree/'train', size=16), held, arch='convnet2-w32', protocol='paper')
    assert row['key'] == job.key(0)
    whole = Evaluation(load_data(tree/'train', size=16), load_data(tree/'val', 'test', 16), arch='convnet2-w32',
                       protocol='paper')
    assert row['key'] != whole.key(0)


def test_benchmark_under_the_papers_protocol(tree, shell, tmp_path):
    shell('benchmark', tree/'train', '--test', tree/'val', '--methods', 'random', '--ipc', 1, '--seeds', 1, '--home',
          tmp_path/'home', '--protocol', 'paper', '--workers', 1, *SMALL)
    [row] = ResultStore(tmp_path/'home'/'benchmark.jsonl').all()
    r = row['cfg']['recipe']
    assert (r['epochs'], r['batch'], r['eval_zoom'], row['cfg']['arch']) == (300, 128, ZOOM, 'convnet2-w32')


def test_soft_labels_live_and_stored_under_the_papers_protocol(tree, shell, tmp_path):
    teacher, labels, home = tmp_path/'t.pt', tmp_path/'labels', tmp_path/'home'
    sets = (tree/'train', '--test', tree/'val')
    how = ('--protocol', 'paper', '--size', 16, '--device', 'cpu')
    shell('train-teacher', *sets, '--out', teacher, '--arch', 'convnet2-w32', *how)
    shell('store-labels', tree/'train', '--teacher', teacher, '--test', tree/'val', '--out', labels, '--codec', 'fp32',
          *how)
    for given in (teacher, labels):
        shell('evaluate', *sets, '--recipe', 'soft', '--teacher', given, '--seeds', 1, '--home', home, '--arch',
              'convnet2-w32', *how)
    live, stored = ResultStore(home/'evaluate.jsonl').all()
    assert live['cfg'] == stored['cfg'] and live['cfg']['augment']['mix'] == 'cutmix' and live['cfg']['epochs'] == 300
    assert (live['top1'], live['nll']) == (stored['top1'], stored['nll'])


def test_test_images_that_are_read_at_another_zoom_are_refused(tree):
    train = load_data(tree/'train', size=16)
    held = {zoom: load_data(tree/'val', 'test', 16, zoom, resident=False) for zoom in (1., ZOOM)}
    how = dict(arch='convnet2-w32', device='cpu')
    with pytest.raises(Refused, match=r'is read at zoom 1, this protocol tests at 1\.14.*zoom=256/224'):
        Evaluation(train, held[1.], protocol='paper', **how)
    Evaluation(train, held[ZOOM], protocol='paper', **how)
    Evaluation(train, held[1.], **how)


@pytest.mark.parametrize('protocol, arch', [('paper', 'resnet18'), ('default', 'convnet2-w32')])
def test_a_teacher_without_a_name_is_the_papers_network_whatever_the_student_is(protocol, arch, tree, monkeypatch):
    train = load_data(tree/'train', size=16)
    asked = []
    monkeypatch.setattr(evaluation, 'label_source', lambda *given: asked.append(given[3]) or LabelSource())
    monkeypatch.setattr(LabelSource, 'check', lambda *_: None)
    Evaluation(train, train, 'soft', 'imagenet', 'convnet2-w32', device='cpu', protocol=protocol)
    assert asked == [arch]


COMMANDS = {
    'evaluate': ('nowhere', '--test', 'nowhere'), 'score': ('nowhere', '--out', 's.npz'),
    'train-teacher': ('nowhere', '--test', 'nowhere', '--out', 't.pt'),
    'store-labels': ('nowhere', '--teacher', 't.pt', '--test', 'nowhere', '--out', 'labels')}


@pytest.mark.parametrize('command', COMMANDS)
def test_a_length_of_ones_own_is_refused_before_anything_is_read(command, shell, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = shell(command, *COMMANDS[command], '--protocol', 'paper', '--epochs', 5, ok=False)
    assert "epochs=5 with protocol='paper'" in said and "leave epochs out, or take protocol='default'" in said


@pytest.mark.parametrize('command', [*COMMANDS, 'benchmark'])
def test_a_wrong_name_lists_both(command, shell, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = shell(command, *COMMANDS.get(command, ()), '--protocol', 'papr', ok=False)
    assert "unknown protocol 'papr': choose one of default, paper" in said
