"""Order and loader: every sample once, the same batches in every process and after every stop."""

from __future__ import annotations

import tarfile
import threading
from collections import Counter
from collections.abc import Sequence
from functools import partial
from io import BytesIO
from pathlib import Path

import pytest
import torch
from PIL import Image

from blip_fast.data import open_source
from blip_fast.data.samples import BadSample, Sample
from blip_fast.images import Decoded, ImageOptions, resize
from blip_fast.train.loader import Loader, Order
from blip_fast.train.objective import Example

SIZE = 8


def picture(value: int) -> bytes:
    file = BytesIO()
    Image.new("RGB", (2, 2), (value % 256, value // 256, 0)).save(file, "PNG")
    return file.getvalue()


class Numbers:
    """Samples called NAME-SHARD-NUMBER, some of them bad; notes which shards are open."""

    def __init__(self, name: str, counts: Sequence[int], bad: Sequence[str] = ()) -> None:
        self.name, self.counts, self.bad = name, list(counts), set(bad)
        self.opened: list[int] = []
        self.live = 0
        self.most_live = 0

    def open(self, shard: int) -> NumbersShard:
        self.opened.append(shard)
        return NumbersShard(self, shard)


class NumbersShard:
    def __init__(self, source: Numbers, shard: int) -> None:
        self.source, self.shard = source, shard
        source.live += 1
        source.most_live = max(source.most_live, source.live)

    def __del__(self) -> None:
        self.source.live -= 1

    def __len__(self) -> int:
        return self.source.counts[self.shard]

    def __getitem__(self, number: int) -> Sample:
        assert 0 <= number < len(self)
        key = f"{self.source.name}-{self.shard}-{number}"
        if key in self.source.bad:
            raise BadSample(f"{key} is bad")
        return Sample(key, (picture(number),), key, key)


def keys(order: Order, epoch: int) -> list[str]:
    return [order.sample(epoch, p).key for p in range(order.length(epoch))]


def all_keys(*sources: Numbers) -> list[str]:
    return sorted(
        f"{source.name}-{shard}-{number}"
        for source in sources
        for shard, count in enumerate(source.counts)
        for number in range(count)
    )


def names_and_seeds(examples: Sequence[Example]) -> list[tuple[str, int]]:
    return [(e.sample.key, e.seed) for e in examples]


def plain(image: Decoded, seed: int) -> torch.Tensor:
    return resize(image, SIZE)


def loader(order: Order, **options: object) -> Loader:
    given: dict = dict(
        batch_size=4,
        augment=plain,
        image_options=ImageOptions(),
        collate=names_and_seeds,
        workers=3,
        seed=1,
    )
    return Loader(order, **(given | options))


@pytest.mark.parametrize(("window", "block"), [(1, 3), (4, 7), (100, 5), (2, 1000)])
def test_every_sample_comes_once_an_epoch(window: int, block: int) -> None:
    sources = Numbers("coco", [23]), Numbers("web", [10, 0, 1, 17])
    order = Order(sources, window=window, block=block)
    first, second = keys(order, 0), keys(order, 1)
    assert sorted(first) == sorted(second) == all_keys(*sources)
    assert first != second
    assert keys(Order(sources, window=window, block=block), 0) == first
    assert keys(Order(sources, window=window, block=block, seed=7), 0) != first


def test_a_window_over_everything_gives_any_sample_any_place() -> None:
    """Of 400 orders of 5 samples, each sample is 80 times in each place: within 5 sigma."""
    order = Order([Numbers("a", [2, 3])], window=10)
    times = Counter((key, place) for e in range(400) for place, key in enumerate(keys(order, e)))
    assert len(times) == 25
    assert max(abs(n - 80) for n in times.values()) < 5 * (400 * 0.2 * 0.8) ** 0.5


def test_large_sources_are_mixed_evenly() -> None:
    """A manifest of one shard is spread among the web's shards, in every part of the epoch."""
    human, web = Numbers("human", [1000]), Numbers("web", [100] * 30)
    names = [key.split("-")[0] for key in keys(Order([human, web], window=8, block=100), 0)]
    share = [names[i : i + 800].count("human") for i in range(0, 4000, 800)]
    assert all(100 <= count <= 300 for count in share), share  # 200, and one block more or less


def test_rotating_sources_take_turns_in_order_of_name() -> None:
    web = [Numbers(name, [2]) for name in ("c", "a", "b")]
    order = Order([Numbers("fixed", [1])], web, rotating_per_epoch=2)
    taken = [{key.split("-")[0] for key in keys(order, epoch)} - {"fixed"} for epoch in range(4)]
    assert taken == [{"a", "b"}, {"c", "a"}, {"b", "c"}, {"a", "b"}]
    assert order.length(0) == 5
    assert Order([], web, rotating_per_epoch=9).length(3) == 6


def test_only_the_shards_of_a_few_windows_are_open() -> None:
    source = Numbers("web", [10] * 40)
    names = [key for batch in loader(Order([source], window=3)).batches(0) for key, _ in batch]
    assert sorted(names) == all_keys(source)
    # once each; more often only where the opening thread is overtaken by three windows
    assert set(source.opened) == set(range(40)) and len(source.opened) < 50
    # one more where an example that is being read still holds on to a shard that was let go
    assert source.most_live <= 4 * 3 + 4


def test_an_order_says_what_is_wrong_with_its_arguments() -> None:
    with pytest.raises(ValueError, match="no sources"):
        Order([])
    with pytest.raises(ValueError, match="window is 0"):
        Order([Numbers("a", [1])], window=0)
    with pytest.raises(ValueError, match="no samples; its sources are a, b"):
        Order([Numbers("a", []), Numbers("b", [0])]).length(0)
    with pytest.raises(IndexError, match="position 1 of 1"):
        Order([Numbers("a", [1])]).sample(0, 1)


def global_batches(order: Order, world: int, size: int, start: int = 0) -> list[list[object]]:
    ranks = [
        list(loader(order, batch_size=size, rank=r, world_size=world).batches(2, start))
        for r in range(world)
    ]
    return [sum(parts, []) for parts in zip(*ranks, strict=True)]


def test_any_number_of_processes_makes_the_same_batches() -> None:
    bad = ["web-1-3", "coco-0-0", "coco-0-1"]
    sources = [Numbers("coco", [31], bad), Numbers("web", [5, 9], bad)]
    order = partial(Order, sources, window=2, block=6)
    alone = global_batches(order(), 1, 6)
    assert len(alone) == 45 // 6
    assert global_batches(order(), 2, 3) == alone
    assert global_batches(order(), 3, 2) == alone
    assert {key for batch in alone for key, _ in batch}.isdisjoint(bad)


@pytest.mark.parametrize(("world", "size"), [(1, 6), (2, 3), (3, 2)])
def test_resuming_goes_on_with_the_next_batch(world: int, size: int) -> None:
    sources = [Numbers("coco", [31], ["coco-0-7"]), Numbers("web", [5, 9])]
    whole = global_batches(Order(sources, window=2, block=6), 1, 6)
    for done in (0, 1, 3, 7):
        order = Order(sources, window=2, block=6)
        assert global_batches(order, world, size, 6 * done) == whole[done:]
        assert loader(order, batch_size=size, world_size=world).steps(2, 6 * done) == 7 - done


def test_a_resume_may_change_the_global_batch() -> None:
    order = Order([Numbers("a", [30])])
    names = [key for batch in loader(order, batch_size=5).batches(0) for key, _ in batch]
    assert sum(global_batches(order, 1, 5), []) != names  # epoch 2, not epoch 0
    later = [pair[0] for batch in loader(order, batch_size=4).batches(0, 10) for pair in batch]
    assert later == names[10:30]


def test_examples_do_not_depend_on_the_number_of_threads() -> None:
    order = Order([Numbers("a", [40], ["a-0-5"])])
    assert list(loader(order, workers=1).batches(0)) == list(loader(order, workers=7).batches(0))


def test_seeds_belong_to_epoch_and_position() -> None:
    order = Order([Numbers("a", [40])])
    seeds = {
        seed for epoch in range(2) for batch in loader(order).batches(epoch) for _, seed in batch
    }
    assert len(seeds) == 80


def test_bad_samples_are_replaced_and_counted() -> None:
    bad = [f"a-0-{n}" for n in range(0, 60, 3)]
    source = Numbers("a", [60], bad)
    reader = loader(Order([source], window=4, block=10), batch_size=6)
    found = [key for batch in reader.batches(0) for key, _ in batch]
    assert len(found) == 60 and set(found).isdisjoint(bad)
    assert set(found) == set(all_keys(source)) - set(bad)  # all good ones, some of them twice
    assert reader.skipped["failed_to_read"] >= len(bad)  # a replacement may be bad, too
    assert "is bad" in reader.first_skipped["failed_to_read"]


def test_replacements_come_from_the_open_window() -> None:
    source = Numbers("a", [10] * 8, [f"a-{s}-{n}" for s in range(8) for n in range(5)])
    order = Order([source], window=1)
    reader = loader(order, batch_size=10)  # a batch is a window, and a window one shard
    shards = [{key.split("-")[1] for key, _ in batch} for batch in reader.batches(0)]
    assert sorted(shards, key=sorted) == [{str(shard)} for shard in range(8)]
    assert reader.skipped["failed_to_read"] >= 40


def test_a_shard_that_cannot_be_opened_costs_its_samples_alone() -> None:
    class Lost(Numbers):
        def open(self, shard: int) -> NumbersShard:
            if shard == 1:
                raise FileNotFoundError("00001.tar is gone")
            return super().open(shard)

    source = Lost("web", [10, 10, 10])
    reader = loader(Order([source], window=3), batch_size=5)
    found = [key for batch in reader.batches(0) for key, _ in batch]
    assert len(found) == 30 and {key.split("-")[1] for key in found} == {"0", "2"}
    assert reader.skipped["failed_to_read"] >= 10
    assert "web, shard 1: FileNotFoundError: 00001.tar is gone" in reader.first_skipped.popitem()[1]


def test_nothing_but_bad_samples_is_an_error_that_says_why() -> None:
    source = Numbers("a", [8], [f"a-0-{n}" for n in range(8)])
    with pytest.raises(ValueError, match=r"101 samples in a row are bad.*a-0-\d is bad"):
        list(loader(Order([source])).batches(0))


def test_hostile_pictures_are_skipped_under_their_status(shared_data: Path) -> None:
    class Files:
        name = "faults"
        paths = sorted((shared_data / "image_faults").iterdir())
        counts = [len(paths)]

        def open(self, shard: int) -> Files:
            return self

        def __len__(self) -> int:
            return len(self.paths)

        def __getitem__(self, number: int) -> Sample:
            path = self.paths[number]
            return Sample(path.name, (path,), "a text", path.name)

    reader = loader(Order([Files()]), batch_size=17)
    found = [key for batch in reader.batches(0) for key, _ in batch]
    assert len(found) == 51
    assert set(reader.skipped) == {"failed_to_decode", "too_large"}
    assert not {"broken.png", "decompression_bomb.gif", "truncated_jpeg.jpg"} & set(found)
    assert {"hopper_orientation_6.jpg", "p_16.png"} <= set(found)


def test_a_damaged_shard_from_file_to_batch(tmp_path: Path) -> None:
    """One header zeroed, one picture cut inside, the end cut off: 4 of 20, all accounted for."""
    path = tmp_path / "00000.tar"
    places = {}
    with tarfile.open(path, "w") as tar:
        for n in range(20):
            for name, content in ((f"{n}.png", picture(n)), (f"{n}.txt", b"text %d" % n)):
                info = tarfile.TarInfo(name)
                info.size, places[name] = len(content), tar.offset
                tar.addfile(info, BytesIO(content))
    data = bytearray(path.read_bytes())
    data[places["3.png"] : places["3.png"] + 512] = bytes(512)
    data[places["7.png"] + 512 + 40 : places["7.png"] + 512 + 60] = bytes(20)
    path.write_bytes(data[: places["18.png"]])
    (tmp_path / "00000_stats.json").write_text('{"successes": 20}')

    reader = loader(Order([open_source(path)]))
    found = {key for batch in reader.batches(0) for key, _ in batch}
    lost = {3, 7, 18, 19}
    assert found == {f"00000.tar/{n}" for n in range(20) if n not in lost}
    assert set(reader.skipped) == {"failed_to_read", "failed_to_decode"}
    assert reader.skipped["failed_to_read"] >= 3 and reader.skipped["failed_to_decode"] >= 1


def test_two_pictures_of_a_sample_are_seen_apart() -> None:
    class Pairs(Numbers):
        def open(self, shard: int) -> Pairs:
            return self

        def __getitem__(self, number: int) -> Sample:
            return Sample(str(number), (picture(1), picture(2)), "text", "id", label=True)

    seeds: list[int] = []

    def augment(image: Decoded, seed: int) -> torch.Tensor:
        seeds.append(seed)
        return resize(image, SIZE)

    [[example]] = loader(
        Order([Pairs("nlvr", [1])]), batch_size=1, augment=augment, collate=list
    ).batches(0)
    assert example.pixels.shape == (2, 3, SIZE, SIZE) and example.pixels.dtype == torch.uint8
    assert example.pixels[:, 0].unique().tolist() == [1, 2]
    assert len(set(seeds)) == 2


def test_an_error_in_a_thread_reaches_the_reader() -> None:
    def collate(examples: Sequence[Example]) -> None:
        raise RuntimeError("collate failed")

    def augment(image: Decoded, seed: int) -> torch.Tensor:
        raise KeyError("augment failed")

    order = Order([Numbers("a", [40])])
    before = threading.active_count()
    with pytest.raises(RuntimeError, match="collate failed"):
        list(loader(order, collate=collate).batches(0))
    with pytest.raises(KeyError, match="augment failed"):
        list(loader(order, augment=augment).batches(0))
    assert threading.active_count() == before


def test_reading_ahead_is_bounded_and_closing_stops_the_threads() -> None:
    read: list[object] = []

    def collate(examples: Sequence[Example]) -> int:
        read.extend(examples)
        return len(examples)

    threads, computing = threading.active_count(), torch.get_num_threads()
    batches = loader(Order([Numbers("a", [4000])]), collate=collate).batches(0)
    assert threading.active_count() == threads  # nothing runs before the first is asked for
    next(batches), next(batches)
    batches.close()
    assert threading.active_count() == threads and torch.get_num_threads() == computing
    assert len(read) <= 4 * (2 + 3 + 1)  # two taken, twelve examples ahead, one being submitted


def test_the_next_window_is_opened_before_it_is_needed() -> None:
    """With shards that wait for each other: the reader of window 0 lets the opener go first."""
    opened = threading.Event()

    class Waiting(Numbers):
        def open(self, shard: int) -> NumbersShard:
            if len(self.opened) == 1:
                opened.set()
            return super().open(shard)

    def augment(image: Decoded, seed: int) -> torch.Tensor:
        assert opened.wait(60), "the second shard is not opened while the first is read"
        return resize(image, SIZE)

    order = Order([Waiting("a", [100, 100])], window=1)
    assert len(list(loader(order, augment=augment).batches(0))) == 50


def test_a_loader_says_what_is_wrong_with_its_arguments() -> None:
    order = Order([Numbers("a", [1])])
    for wrong, message in (
        ({"batch_size": 0}, "batch_size is 0"),
        ({"workers": 0}, "workers 0"),
        ({"rank": 2, "world_size": 2}, "rank is 2"),
    ):
        with pytest.raises(ValueError, match=message):
            loader(order, **wrong)


def test_orders_are_the_same_on_every_machine() -> None:
    """Frozen: a change here breaks the resume of runs that are under way."""
    assert keys(Order([Numbers("a", [4, 3])], window=1, block=2, seed=42), 3) == FROZEN


FROZEN = ["a-1-2", "a-0-1", "a-0-0", "a-1-1", "a-1-0", "a-0-2", "a-0-3"]


def test_samples_that_belong_together_stay_neighbours() -> None:
    sources = Numbers("a", [10, 6]), Numbers("b", [8])
    order = Order(sources, window=2, together=2)
    assert sorted(keys(order, 0)) == all_keys(*sources)
    places = [key.rsplit("-", 1) for key in keys(order, 0)]
    for (shard, number), (next_shard, next_number) in zip(places[::2], places[1::2], strict=True):
        assert next_shard == shard and int(number) % 2 == 0
        assert int(next_number) == int(number) + 1
    assert [number for _, number in places[::2]] != sorted(number for _, number in places[::2])
