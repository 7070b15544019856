"What a place holds, before any work: duplicates, damage, sizes, the options of reading, and names from outside."
import csv
import html
import io
import re
import shutil
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import pca_nb as pn
from pca_nb import duplicates, terminal
from pca_nb.board import words_of
from pca_nb.core import Refused
from pca_nb.decode import LazyImages
from pca_nb.duplicates import KINDS, compare_splits, find_duplicates, find_repeats, hash_split
from pca_nb.files import encode_images
from pca_nb.html_report import write_report
from pca_nb.imageset import ImageSet
from pca_nb.inspection import MAX_UNASKED_PIXELS, inspect
from pca_nb.survey import read_headers

ODD = 'a\x1b[31mred\nnl<b>'     # a name that colours the terminal, breaks a line and opens a tag
CPU = ('--device', 'cpu')


def noise(seed, h=24, w=30):
    "A picture with structure, so that perceptual hashes differ."
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((w, h), Image.Resampling.BICUBIC)


@pytest.fixture
def pets(tmp_path):
    "Two splits of two classes, eight and four images each, without a fault."
    seed = 0
    for split, n in (('train', 8), ('test', 4)):
        for c in ('cat', 'dog'):
            (tmp_path/'pets'/split/c).mkdir(parents=True)
            for i in range(n):
                noise(seed, 24 + seed % 5, 30).save(tmp_path/'pets'/split/c/f'{i}.png')
                seed += 1
    return tmp_path/'pets'


def copy(root, a, b):
    (root/b).parent.mkdir(parents=True, exist_ok=True)
    (root/b).write_bytes((root/a).read_bytes())


# duplicates

def test_duplicates_across_splits_and_classes_are_told_apart(pets):
    copy(pets, 'train/cat/0.png', 'test/cat/again.png')      # leaks
    copy(pets, 'train/cat/1.png', 'train/dog/wrong.png')     # contradicts
    copy(pets, 'train/dog/2.png', 'train/dog/twice.png')     # is there twice
    train, test = pn.load_data(pets), pn.load_data(pets, 'test', size=24)
    found = find_duplicates(replace(train, images=pn.load_data(pets, size=24).images), test)
    assert [len(found.of(kind)) for kind in KINDS] == [1, 1, 1]
    leak = found.of('across splits').iloc[0]
    assert (leak['name'], leak['first name']) == ('cat/again.png', 'cat/0.png')
    wrong = found.of('across classes').iloc[0]
    assert (wrong['class'], wrong['first class']) == ('dog', 'cat')
    assert len(found.grave) == 2


def test_the_same_pixels_in_other_files_are_duplicates(pets):
    "Decoded pixels count, not bytes: a BMP and a PNG with a comment."
    Image.open(pets/'train'/'cat'/'0.png').save(pets/'test'/'cat'/'other.bmp')
    assert len(inspect(pets).duplicates.of('across splits')) == 1


@pytest.mark.parametrize('seed', range(6))
@pytest.mark.parametrize('near', [False, True])
def test_search_finds_what_all_pairs_find(seed, near):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 90))
    bits = rng.integers(2, size=(5, 112))[rng.integers(5, size=n)] ^ (rng.random((n, 112)) < .04)
    hashes = np.pad(np.packbits(bits, axis=1), ((0, 0), (0, 2))).view(np.uint64)
    pixels, split, labels = (rng.integers(k, size=n) for k in (30, 2, 3))
    split = np.sort(split)
    if not near: hashes = np.stack([pixels, pixels], 1).astype(np.uint64)
    cost, partner = find_repeats(hashes, split, labels, pixels, near)
    for i in range(n):
        best = 2**15
        for j in range(i):
            apart = sum(int(a ^ b).bit_count() for a, b in zip(hashes[i], hashes[j])) if near else 0
            kind = 0 if split[i] != split[j] else 1 if labels[i] != labels[j] else 2
            if (apart <= 6 and pixels[i] != pixels[j]) if near else pixels[i] == pixels[j]:
                best = min(best, 128*kind + apart)
        assert cost[i] == best and (partner[i] >= 0) == (best < 2**15)


def test_no_pair_within_the_threshold_is_missed():
    "Six flipped bits anywhere: at least one of seven words stays as it was."
    rng = np.random.default_rng(0)
    first = rng.integers(2, size=112)
    for _ in range(200):
        other = first.copy()
        other[rng.choice(112, 6, replace=False)] ^= 1
        hashes = np.pad(np.packbits([first, other], axis=1), ((0, 0), (0, 2))).view(np.uint64)
        cost, _ = find_repeats(hashes, np.array([0, 1]), np.zeros(2), np.array([0, 1]), near=True)
        assert cost[1] == 6


def test_blocks_of_the_search_do_not_matter(monkeypatch):
    images = torch.randint(0, 3, (60, 3, 1, 1), dtype=torch.uint8)
    s = ImageSet(images.expand(-1, -1, 8, 8).contiguous(), torch.arange(60) % 2, ('a', 'b'))
    whole = find_duplicates(s).pairs
    monkeypatch.setattr(duplicates, '_PAIRS_AT_ONCE', 7)
    monkeypatch.setattr(duplicates, '_BATCH', 11)
    pd.testing.assert_frame_equal(find_duplicates(s).pairs, whole)
    assert len(whole) > 20


def test_sets_on_demand_are_hashed_as_resident_ones():
    s = pn.sample_photos(32)
    lazy = replace(s, images=LazyImages(encode_images(s), 32))
    a, b = hash_split(s, 'train', near=True), hash_split(lazy, 'train', near=True)
    assert (a.exact == b.exact).all() and (a.near == b.near).all()
    assert len(compare_splits([a, replace(b, split='test')]).of('across splits')) == 16


def test_hashing_reads_a_set_on_demand_batch_by_batch(monkeypatch):
    "Never more than three batches are decoded at once."
    s = pn.sample_photos(16)
    held, most, largest = set(), 0, 0

    class Watched(LazyImages):
        def start(self, idx):
            nonlocal most, largest
            largest = max(largest, len(idx))
            wait = super().start(idx)
            held.add(id(wait))
            most = max(most, len(held))

            def watched():
                held.discard(id(wait))
                return wait()
            return watched
    monkeypatch.setattr(duplicates, '_BATCH', 2)
    duplicates.hash_images(Watched(encode_images(s), 16))
    assert largest == 2 and most <= 3


def test_near_duplicates_are_reported_only_on_request_and_never_refused(pets):
    file = io.BytesIO()
    Image.open(pets/'train'/'cat'/'0.png').save(file, 'JPEG', quality=60)
    (pets/'test'/'cat'/'saved.jpg').write_bytes(file.getvalue())
    assert not len(inspect(pets).duplicates.pairs)
    seen = inspect(pets, near=True, strict=True)
    pair = seen.duplicates.of('across splits', 'near')
    assert pair['name'].tolist() == ['cat/saved.jpg'] and seen.ok


# inspect

def test_a_good_place_has_no_reasons(pets):
    seen = inspect(pets)
    assert seen.ok and list(seen.splits) == ['train', 'test']
    assert seen.splits['train'].counts == [8, 8] and seen.splits['test'].counts == [4, 4]
    assert seen.size == pn.load_data(pets).size[0] and seen.decoded_bytes == 24*3*seen.size**2
    said = str(seen)
    assert 'class folders' in said and '16 images of 2 classes, 8 per class' in said and 'no duplicates' in said


def test_inspecting_headers_decodes_no_pixel(pets, monkeypatch):
    def refuse(*_): raise AssertionError('decoded')
    monkeypatch.setattr('pca_nb.decode.read_image', refuse)
    seen = inspect(pets, duplicates=False)
    assert seen.duplicates is None and '24 headers read, no pixels decoded' in str(seen)


def test_large_places_say_what_decoding_would_take(pets, monkeypatch):
    monkeypatch.setattr('pca_nb.inspection.MAX_UNASKED_PIXELS', 1000)
    seen = inspect(pets)
    assert seen.duplicates is None and 'not looked for' in str(seen) and '--duplicates' in str(seen)
    assert inspect(pets, duplicates=True).duplicates is not None
    assert MAX_UNASKED_PIXELS >= 10**8


def test_one_split_by_name(pets):
    assert list(inspect(pets, 'test').splits) == ['test']
    seen = inspect(pets, 'holdout')
    assert not seen.ok and 'choose one of test, train' in seen.reasons[0]


def test_damaged_files_are_found_by_header_and_by_pixels(pets):
    (pets/'train'/'cat'/'empty.png').write_bytes(b'')
    cut = pets/'train'/'dog'/'1.png'
    cut.write_bytes(cut.read_bytes()[:200])
    quick, seen = inspect(pets, duplicates=False), inspect(pets)
    assert len(quick.splits['train'].damaged) == 1 and len(seen.splits['train'].damaged) == 2
    assert not seen.ok and '2 damaged images' in seen.reasons[0] and '--skip-damaged' in seen.reasons[0]
    assert inspect(pets, skip_damaged=True).ok
    assert '<img' in seen._repr_html_()          # pictures of the others


def test_headers_of_very_many_images_are_sampled(pets):
    listing = inspect(pets).splits['train'].listing
    assert read_headers(listing, most=5).looked == 4
    assert read_headers(listing).looked == 16


def test_sizes_modes_notes_and_foreign_formats(pets):
    noise(99).convert('L').save(pets/'train'/'cat'/'grey.gif')
    (pets/'train'/'notes.txt').write_text('dear diary')
    (pets/'train'/'cat'/'._0.png').write_bytes(b'from a Mac')
    said = str(inspect(pets))
    assert 'GIF' in said and 'PNG RGB' in said and re.search(r'no images \(1 \.txt\)', said) and '._0.png' in said
    (pets/'train'/'cat'/'phone.heic').write_bytes(b'from an iPhone')
    seen = inspect(pets)
    assert not seen.ok and 'phone.heic' in str(seen)


def test_classes_that_training_lacks_are_a_reason(pets):
    (pets/'test'/'dog').rename(pets/'test'/'wolf')
    seen = inspect(pets)
    assert not seen.ok and 'test has 1 class that train lacks, wolf' in seen.reasons[0]


def test_places_without_splits_and_other_layouts(pets, tmp_path):
    assert list(inspect(pets/'train').splits) == ['']
    s = pn.load_data(pets)
    for place in (pn.save_npz(s, tmp_path/'s.npz'), pn.save_folder(s, tmp_path/'folder')):
        seen = inspect(place)
        assert seen.ok and seen.size == s.size[0] and len(seen.splits[''].listing) == 16
    assert list(pn.inspect('digits').splits) == ['train', 'test']
    with pytest.raises(Refused, match='no such file or folder'): inspect(tmp_path/'absent')


# the command line

def test_inspect_in_the_shell(pets, shell):
    assert '8 per class' in shell('inspect', pets)
    copy(pets, 'train/cat/0.png', 'test/cat/again.png')
    assert '1 image of test in train too' in shell('inspect', pets)
    assert '1 image of test in train too' in shell('inspect', pets, '--strict', ok=False)
    said = shell('inspect', pets, '--split', 'train', '--near', '--strict')
    assert '  train ' in said and '  test ' not in said


def test_inspect_exits_with_2_and_the_reasons(pets, monkeypatch, capsys):
    from pca_nb import cli
    (pets/'train'/'cat'/'empty.png').write_bytes(b'')
    monkeypatch.setattr('sys.argv', ['pca-nb', 'inspect', str(pets)])
    with pytest.raises(SystemExit) as end: cli.main()
    assert end.value.code == 2 and '1 damaged image' in capsys.readouterr().err


def test_skip_damaged_lists_what_it_leaves_out(pets, tmp_path, shell):
    (pets/'train'/'cat'/'empty.png').write_bytes(b'')
    (pets/'test'/'dog'/'cut.png').write_bytes((pets/'test'/'dog'/'0.png').read_bytes()[:200])
    words = 'compress', pets, '--method', 'random', '--ipc', 2, '--out', tmp_path/'small', *CPU
    assert '--skip-damaged' in shell(*words, ok=False) and not (tmp_path/'small').exists()
    assert 'damaged.txt' in shell(*words, '--skip-damaged')
    assert (tmp_path/'damaged.txt').read_text() == 'cat/empty.png\tan empty file\n'
    said = shell('evaluate', tmp_path/'small', '--test', pets, '--epochs', 2, '--seeds', 1, '--home', tmp_path/'h',
                 '--skip-damaged', *CPU)
    shell(*words[:-4], '--out', tmp_path/'again', '--skip-damaged', *CPU)
    assert (tmp_path/'damaged.txt').read_text() == 'cat/empty.png\tan empty file\n'      # not twice
    assert 'damaged.txt' in said and (tmp_path/'h'/'damaged.txt').read_text().startswith('dog/cut.png\t')


def test_strict_refuses_before_any_work(pets, tmp_path, shell):
    copy(pets, 'train/cat/1.png', 'train/dog/wrong.png')
    words = 'compress', pets, '--method', 'random', '--ipc', 2, '--out', tmp_path/'small', *CPU
    said = shell(*words, '--strict', ok=False)
    assert 'under two labels' in said and '--strict' in said and not (tmp_path/'small').exists()
    assert '1 image under two labels' in shell(*words)


def test_images_in_train_and_test_are_said_before_training(pets, tmp_path, shell):
    copy(pets, 'train/cat/0.png', 'test/cat/again.png')
    words = 'train-teacher', pets, '--test', pets, '--epochs', 1, '--out', tmp_path/'t.pt', *CPU
    said = shell(*words, '--strict', ok=False)
    assert '1 image of test in train too' in said and not (tmp_path/'t.pt').exists()
    assert 'no such' not in said
    words = 'evaluate', pets, '--test', pets, '--epochs', 1, '--seeds', 1, *CPU
    said = shell(*words)
    assert said.index('1 image of test in train too') < said.index('ahead')


def test_splits_by_name(pets, tmp_path, shell):
    "`--split` is of the data, `--test-split` of the test images, which are `test` by themselves."
    (pets/'train').rename(pets/'validation')
    words = 'evaluate', pets, '--test', pets, '--epochs', 1, '--seeds', 1, *CPU
    assert "no split 'train'" in shell(*words, ok=False)
    said = shell(*words, '--split', 'test', '--test-split', 'validation')
    assert re.search(r'train: .*: 8 of', said) and re.search(r'test: .*: 16 of', said)


def test_benchmark_reads_by_the_options_given(pets, tmp_path, shell):
    (pets/'train'/'cat'/'empty.png').write_bytes(b'')
    words = ('benchmark', pets, '--test', pets, '--methods', 'random', '--ipc', 1, '--seeds', 1, '--home', tmp_path/'h',
             '--arch', 'convnet2-w32', '--workers', 1, *CPU)
    assert '--skip-damaged' in shell(*words, ok=False)
    seen = []
    # the grid itself is tested elsewhere
    from pca_nb import cli
    with pytest.MonkeyPatch.context() as m:
        m.setattr(cli, 'run_announced', lambda cfgs, store, home, workers, data, *_: seen.append(data))
        m.setattr(cli, 'show_benchmark', lambda *a: None)
        m.setattr(cli, 'say_cost_of_sets', lambda *a: None)
        shell(*words, '--skip-damaged')
    train, test = (pn.load_data(path) for path in seen[0].paths)
    assert (len(train), len(test)) == (16, 8)
    assert (tmp_path/'h'/'damaged.txt').read_text() == 'cat/empty.png\tan empty file\n'


def test_an_unknown_way_to_match_is_refused_before_images_are_read(tmp_path, shell):
    assert 'choose one of name, order' in shell('evaluate', 'nowhere', '--test', 'x', '--match', 'number', ok=False)


def test_columns_by_name(tmp_path, shell):
    "A table with two columns of images, and two of numbers."
    s = pn.sample_photos(16)
    cells, others = ([dict(bytes=b, path=None) for b in encode_images(replace(s, images=x))]
                     for x in (s.images, 255 - s.images))
    table = pa.table(dict(before=cells, after=others, kind=s.labels.tolist(), year=[0, 1]*8))
    pq.write_table(table, tmp_path/'t.parquet')
    words = 'compress', tmp_path/'t.parquet', '--method', 'random', '--ipc', 8, *CPU
    assert '--image-column' in shell(*words, '--out', tmp_path/'x', ok=False)
    named = '--image-column', 'after', '--label-column', 'year'
    assert '8 per class' in shell('inspect', tmp_path/'t.parquet', *named)
    shell(*words, '--out', tmp_path/'small', *named)
    small = pn.load_data(tmp_path/'small')
    back = small[small.index[:, 0].argsort()]
    assert (back.images == 255 - s.images).all() and back.labels.tolist() == [0, 1]*8


def test_matching_by_order(pets, tmp_path, shell):
    "Folders of a distilled set are numbered, those of the test set are named."
    for path in pets.rglob('cat/*'): Image.open(path).point(lambda v: v//4).save(path)      # dark: easy to tell
    (tmp_path/'small').mkdir()
    for k, c in enumerate(('cat', 'dog')):
        (pets/'train'/c).rename(tmp_path/'small'/f'new00{k}')
    words = 'evaluate', tmp_path/'small', '--test', pets/'test', '--epochs', 1, '--seeds', 1, *CPU
    assert '--match order' in shell(*words, ok=False)
    assert 'top-1' in shell(*words, '--match', 'order')
    words = 'train-teacher', tmp_path/'small', '--test', pets/'test', '--epochs', 20, '--out', tmp_path/'t.pt', *CPU
    assert 'top-1' in shell(*words, '--match', 'order')


def test_hub_folders_and_archives_are_inspected_like_folders(pets, tmp_path, shell):
    (tmp_path/'hub'/'data').mkdir(parents=True)
    for split in ('train', 'test'):
        pn.save_parquet(pn.load_data(pets, split), tmp_path/'hub'/'data'/f'{split}-00000-of-00001.parquet')
    shutil.make_archive(str(tmp_path/'zipped'), 'zip', pets.parent, 'pets')
    for place in (tmp_path/'hub', tmp_path/'zipped.zip'):
        seen = inspect(place, near=True)
        assert {name: len(s.listing) for name, s in seen.splits.items()} == dict(train=16, test=8), place
        assert seen.ok and str(seen.duplicates) == 'no duplicates among 24 images'
        assert '8 per class' in shell('inspect', place)


# names from outside

@pytest.fixture
def odd_pets(tmp_path):
    "Classes and files whose names hold an escape sequence, a line break and a tag, in a folder of such a name."
    root = tmp_path/f'pets {ODD}'
    for k, c in enumerate((ODD, 'dog')):
        (root/c).mkdir(parents=True)
        for i in range(4): noise(10*k + i).save(root/c/f'{i}{ODD}.png')
    return root


def is_plain(text):
    "No control character acts: only line ends and what `rich` draws tables with."
    assert not [c for c in re.sub(r'\x1b\[[0-9;]*m', '', text) if not (c.isprintable() or c == '\n')], repr(text)
    assert '\x1b[31mred' not in text and 'red\nnl' not in text


def test_odd_names_in_the_shell(odd_pets, tmp_path, shell):
    said = shell('inspect', odd_pets)
    is_plain(said)
    assert r'a\x1b[31mred\nnl<b> 4, dog 4' in said
    small = tmp_path/f'small {ODD}'
    said = shell('compress', odd_pets, '--method', 'random', '--ipc', 2, '--out', small, *CPU)
    is_plain(said)
    assert r'\x1b[31mred\nnl' in said
    with (small/'chosen.csv').open(newline='') as f: rows = list(csv.DictReader(f))
    assert {r['class'] for r in rows} == {ODD, 'dog'}     # a table for programs keeps names as they are
    said = shell('evaluate', small, '--test', odd_pets, '--epochs', 1, '--seeds', 1, '--home', small, *CPU)
    is_plain(said)


def test_odd_names_in_refusals_and_notes(odd_pets, shell):
    copy(odd_pets, f'dog/0{ODD}.png', f'{ODD}/x{ODD}.png')
    is_plain(shell('inspect', odd_pets, '--strict', ok=False))
    (odd_pets/'dog'/f'cut{ODD}.png').write_bytes(b'')
    (odd_pets/'dog'/f'notes{ODD}.txt').write_text('dear diary')
    said = shell('compress', odd_pets, '--method', 'random', '--ipc', 2, '--out', odd_pets.parent/'o', *CPU, ok=False)
    is_plain(said)
    assert said.count('\n') == said.count('pca-nb: ') == 2     # a note and a refusal, a line each
    assert '1 files skipped' in said.splitlines()[0]
    is_plain(shell('score', odd_pets, '--out', f'/proc/{ODD}/x.npz', *CPU, ok=False))      # the system's own error
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter('always')
        pn.load_data(odd_pets, skip_damaged=True)
    assert len(notes) == 2
    for note in notes: is_plain(str(note.message))


def test_nothing_that_is_printed_is_markup(capsys):
    for name in ('[/b]', '[bold]x[/bold]', ':smile:', ODD):
        terminal.out.print(f'{name} there')
        terminal.show(pd.DataFrame({name: [name]}, index=[name]), name)
        said = capsys.readouterr().out
        is_plain(said)
        assert said.count(name.replace('\x1b', r'\x1b').replace('\n', r'\n')) >= 4 or '\n' in name


def test_odd_names_on_pages(odd_pets):
    page = inspect(odd_pets)._repr_html_()
    is_plain(page)
    assert '<b>' not in page.replace(f'<b>{html.escape(str(odd_pets))[:3]}', '') and '&lt;b&gt;' in page
    is_plain(words_of(KeyError(ODD)))
    assert '<b>' not in words_of(ValueError(ODD))


def test_odd_names_in_the_report(tmp_path):
    seconds = dict(train=1.)
    rows = [dict(key=f'{m}{s}', data=ODD, method=m, ipc=1, seed=s, top1=20.+s, best_top1=21., nll=1., arch='convnet',
                 labels='hard', recipe='hard', optimizer='adamw', epochs=3, device='cpu', dtype='float32', threads='1',
                 torch='2', torchvision='0', python='3', pca_nb='0', seconds=seconds, images=2, image_bytes=3,
                 label_bytes=0, set='x', size=8) for m in ('random', ODD) for s in (0, 1)]
    page = write_report(pd.DataFrame(rows), tmp_path/'x.html', title=ODD).read_text(encoding='utf-8')
    text = re.sub(r'src="data:[^"]*"', '', page)
    assert '\x1b' not in text and 'red\nnl' not in text and 'nl<b>' not in text and 'nl&lt;b&gt;' in text
