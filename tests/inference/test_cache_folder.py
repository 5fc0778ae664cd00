"""The folder of the prefix cache: states that leave the memory come back, or cost nothing else."""

import errno
import logging
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from griffin_jax.inference import PrefixCache
from griffin_jax.inference.kept_states import Folder, KeptState
from griffin_jax.inference.row_states import fresh_row, nbytes
from griffin_jax.models import State
from griffin_jax.paths import OutputError
from tests.inference.test_device_errors import failing
from tests.inference.test_prefix_cache import EVERY, draw, run
from tests.inference.tiny_model import language_model

TEXTS = [draw(2 * EVERY + 3, i) for i in range(4)]


@pytest.fixture(scope="module")
def lm():
    return language_model()


@pytest.fixture
def cache(lm, tmp_path):
    """One that has read the texts, and keeps one state on the device, two on the host, the rest in files."""
    row = nbytes(fresh_row(lm.model, lm.params, 1))
    cache = PrefixCache(
        row, host_bytes=2 * row, folder=tmp_path / "states", folder_bytes=20 * row, every=EVERY
    )
    cache.first, _ = run(lm, TEXTS, cache)
    assert cache.device_bytes == row and cache.host_bytes == 2 * row
    assert cache.folder_bytes == 5 * row
    return cache


def files(cache, tmp_path):
    found = sorted((tmp_path / "states").iterdir())
    assert len(found) * cache.device_bytes == cache.folder_bytes
    return found


def test_states_come_back_from_files_as_they_were_and_leave_none_behind(lm, cache, tmp_path):
    assert len(files(cache, tmp_path)) == 5
    again, stats = run(lm, TEXTS, cache)
    assert stats.cached_tokens == 4 * 2 * EVERY and cache.stats.evicted == 0
    assert [r.result() for r in again] == [r.result() for r in cache.first]
    files(cache, tmp_path)
    cache.clear()
    assert not list((tmp_path / "states").iterdir()) and cache.folder_bytes == 0


def test_states_in_bfloat16_come_back_from_files_too(tmp_path):
    array = jnp.asarray([[1.5, -2.25]], jnp.bfloat16)
    kept = KeptState({"conv": array, "position": jnp.asarray([7], jnp.int32)})
    folder = Folder(tmp_path / "states")
    assert folder.write(kept) and kept.state is None
    assert folder.read(kept)
    assert kept.state["conv"].dtype == jnp.bfloat16 and kept.state["position"].tolist() == [7]
    np.testing.assert_array_equal(kept.state["conv"], array)


def test_files_stay_within_their_bytes(lm, cache, tmp_path):
    for i in range(30):
        run(lm, [draw(EVERY * (1 + i % 4) + 1, i)], cache)
        assert len(files(cache, tmp_path)) <= 20


@pytest.mark.parametrize("harm", ["removed", "damaged", "cut"])
def test_a_file_that_is_lost_or_damaged_costs_its_state_alone(lm, cache, tmp_path, harm, caplog):
    for file in files(cache, tmp_path):
        if harm == "removed":
            file.unlink()
            continue
        data = bytearray(file.read_bytes())
        data[-5] ^= 1
        file.write_bytes(data if harm == "damaged" else data[:-9])
    with caplog.at_level(logging.WARNING):
        again, _ = run(lm, TEXTS, cache)
    assert [r.result().tokens for r in again] == [r.result().tokens for r in cache.first]
    assert cache.stats.evicted == 4  # the fifth is of a text whose longer one was found
    told = [r.message for r in caplog.records if "the prefix cache cannot read" in r.message]
    assert len(told) == 1 and "\n" not in told[0]


def test_a_folder_that_cannot_be_written_any_more_costs_states_alone(
    lm, cache, monkeypatch, caplog
):
    def full(path):
        raise OutputError(path, "no space left")

    monkeypatch.setattr("griffin_jax.inference.kept_states.files.new_file", full)
    texts = [draw(3 * EVERY + 1, 50 + i) for i in range(3)]
    with caplog.at_level(logging.WARNING):
        found, _ = run(lm, texts, cache)
    alone, _ = run(lm, texts, None)
    assert [r.result().tokens for r in found] == [r.result().tokens for r in alone]
    assert cache.stats.evicted > 0
    assert sum("cannot write" in r.message for r in caplog.records) == 1


def test_files_that_cannot_be_removed_any_more_cost_no_text(lm, cache, monkeypatch, caplog):
    def read_only(path, missing_ok=False):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    cache._tiers.disk.most = cache.folder_bytes  # so that files make room for others
    monkeypatch.setattr(pathlib.Path, "unlink", read_only)
    texts = [draw(2 * EVERY + 1, 50 + i) for i in range(3)]
    with caplog.at_level(logging.WARNING):
        found, _ = run(lm, texts, cache)
    alone, _ = run(lm, texts, None)
    assert [r.result().tokens for r in found] == [r.result().tokens for r in alone]
    assert sum("cannot remove" in r.message for r in caplog.records) == 1


def test_a_state_that_the_device_does_not_give_back_costs_itself_alone(
    lm, cache, monkeypatch, caplog
):
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        get, cache_asks = jax.device_get, []

        def breaks(tree):
            if isinstance(tree, State) and not cache_asks:
                cache_asks.append(tree)
                raise jax.errors.JaxRuntimeError("INTERNAL: lost")
            return get(tree)

        patch.setattr(jax, "device_get", breaks)
        found, _ = run(lm, [draw(2 * EVERY + 1, 50)], cache)
    alone, _ = run(lm, [draw(2 * EVERY + 1, 50)], None)
    assert [r.result().tokens for r in found] == [r.result().tokens for r in alone]
    assert cache_asks and cache.stats.evicted == 1
    assert any("a state to the host: INTERNAL" in r.message for r in caplog.records)
    again, _ = run(lm, TEXTS, cache)
    assert [r.result().tokens for r in again] == [r.result().tokens for r in cache.first]


def test_a_state_that_the_device_has_no_room_for_costs_itself_alone(
    lm, cache, tmp_path, monkeypatch, caplog
):
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        failing(patch, jax, "device_put", {0})
        again, _ = run(lm, TEXTS, cache)
    assert [r.result().tokens for r in again] == [r.result().tokens for r in cache.first]
    assert any("back to the device: RESOURCE_EXHAUSTED" in r.message for r in caplog.records)
    assert cache.stats.evicted == 1
    files(cache, tmp_path)
    third, _ = run(lm, TEXTS, cache)
    assert [r.result().tokens for r in third] == [r.result().tokens for r in cache.first]


def test_what_an_earlier_cache_has_left_is_removed_and_foreign_files_are_refused(tmp_path):
    (tmp_path / "7.prefix-state").write_bytes(b"old")
    PrefixCache(folder=tmp_path, folder_bytes=100)
    assert not list(tmp_path.iterdir())
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "7.prefix-state").write_bytes(b"old")
    with pytest.raises(
        ValueError, match=r"holds notes\.txt, which is no file of a prefix"
    ) as caught:
        PrefixCache(folder=tmp_path, folder_bytes=100)
    assert "\n" not in str(caught.value)
    assert len(list(tmp_path.iterdir())) == 2
    (tmp_path / "notes.txt").unlink()
    (tmp_path / "8.prefix-state").mkdir()
    with pytest.raises(ValueError, match=r"holds 8\.prefix-state, which is no file"):
        PrefixCache(folder=tmp_path, folder_bytes=100)


def test_a_folder_that_is_none_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="file"):
        PrefixCache(folder=tmp_path / "file", folder_bytes=100)
    for options in ({"folder": tmp_path}, {"folder_bytes": 5}):
        with pytest.raises(ValueError, match="folder and folder_bytes go together"):
            PrefixCache(**options)
