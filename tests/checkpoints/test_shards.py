import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from griffin_jax.checkpoints import CheckpointError
from griffin_jax.checkpoints import shards as shards_module
from griffin_jax.checkpoints.shards import INDEX_FILE, WEIGHTS_FILE, ShardWriter, TensorReader

DTYPES = (np.float32, np.float16, ml_dtypes.bfloat16, np.uint8, np.int32)


def arrays_of(shapes, dtype):
    rng = np.random.default_rng(0)
    return {f"t{i}": rng.normal(size=s, scale=9).astype(dtype) for i, s in enumerate(shapes)}


def write(folder, tensors, **kwargs):
    writer = ShardWriter(folder, **kwargs)
    for name, array in tensors.items():
        writer.add(name, array)
    return writer.finish()


def read_all(folder):
    reader = TensorReader(folder)
    return {name: reader.read(name) for name in reader.names}


def assert_equal(actual, expected):
    assert set(actual) == set(expected)
    for name, array in expected.items():
        assert (actual[name].dtype, actual[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(actual[name], array)


@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_of_every_kind_come_back(tmp_path, dtype):
    tensors = arrays_of([(3, 5), (7,), (2, 3, 4), (), (0, 3)], dtype)
    write(tmp_path, tensors)
    assert_equal(read_all(tmp_path), tensors)


def test_the_safetensors_library_reads_what_is_written(tmp_path):
    tensors = arrays_of([(3, 5), (7,), (64, 64)], np.float32) | {
        "odd": np.arange(13, dtype=np.uint8),
        "strided": np.arange(12, dtype=np.float16).reshape(3, 4).T,
    }
    (file,) = write(tmp_path, tensors)
    assert_equal(safetensors.numpy.load_file(file), tensors)
    with safetensors.safe_open(file, "np") as opened:
        assert opened.metadata() == {"format": "pt"}


def test_what_the_safetensors_library_writes_is_read(tmp_path):
    tensors = arrays_of([(3, 5), (7,)], np.float16) | {"odd": np.arange(13, dtype=np.uint8)}
    safetensors.numpy.save_file(tensors, tmp_path / WEIGHTS_FILE)
    assert_equal(read_all(tmp_path), tensors)


@settings(max_examples=20, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 40), st.sampled_from(DTYPES)), min_size=1, max_size=12),
    limit=st.integers(1, 400),
)
def test_shards_keep_to_their_limit_and_tensors_to_their_alignment(tmp_path_factory, sizes, limit):
    folder = tmp_path_factory.mktemp("shards")
    tensors = {f"t{i}": np.arange(size).astype(dtype) for i, (size, dtype) in enumerate(sizes)}
    files = write(folder, tensors, max_shard_size=limit)
    assert_equal(read_all(folder), tensors)
    reader = TensorReader(folder)
    for name in reader.names:
        assert reader[name].offset % reader[name].dtype.itemsize == 0
    for file in files:
        inside = [array.nbytes for name, array in tensors.items() if reader[name].file == file]
        assert sum(inside) <= limit or len(inside) == 1


def test_shards_and_index_are_named_as_transformers_names_them(tmp_path):
    tensors = arrays_of([(4,), (4,), (4,)], np.float32)
    files = write(tmp_path, tensors, max_shard_size=32)
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    assert [f.name for f in files] == names
    index = json.loads((tmp_path / INDEX_FILE).read_text())
    assert index["weight_map"] == {"t0": names[0], "t1": names[0], "t2": names[1]}
    assert index["metadata"]["total_size"] == 48
    assert sorted(f.name for f in tmp_path.iterdir()) == sorted([*names, INDEX_FILE])


def test_a_full_header_begins_a_new_shard(tmp_path, monkeypatch):
    monkeypatch.setattr(shards_module, "_HEADER_ROOM", 512)
    tensors = arrays_of([(4,)] * 10, np.float32)
    assert len(write(tmp_path, tensors)) > 1
    assert_equal(read_all(tmp_path), tensors)


def test_a_tensor_is_described_without_being_read(tmp_path):
    write(tmp_path, arrays_of([(3, 5)], ml_dtypes.bfloat16))
    reader = TensorReader(tmp_path)
    info = reader["t0"]
    assert (info.shape, info.dtype, info.nbytes) == ((3, 5), ml_dtypes.bfloat16, 30)
    assert reader.nbytes == 30
    assert "t0" in reader
    assert "t1" not in reader


def damaged(path):
    with pytest.raises(CheckpointError) as caught:
        TensorReader(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_without_weights_says_what_is_expected(tmp_path):
    message = damaged(tmp_path)
    assert str(tmp_path) in message
    assert WEIGHTS_FILE in message


@pytest.mark.parametrize("kept", [0, 5, 30, -1])
def test_a_truncated_file_is_named(tmp_path, kept):
    (file,) = write(tmp_path, arrays_of([(3, 5)], np.float32))
    file.write_bytes(file.read_bytes()[:kept])
    message = damaged(tmp_path)
    assert "truncated" in message
    assert str(file) in message


def test_a_missing_shard_is_named(tmp_path):
    files = write(tmp_path, arrays_of([(4,), (4,)], np.float32), max_shard_size=16)
    files[1].unlink()
    message = damaged(tmp_path)
    assert files[1].name in message
    assert "missing" in message


def test_a_tensor_that_its_shard_has_not_is_named(tmp_path):
    write(tmp_path, arrays_of([(4,), (4,)], np.float32), max_shard_size=16)
    index = json.loads((tmp_path / INDEX_FILE).read_text())
    index["weight_map"]["ghost"] = index["weight_map"]["t0"]
    (tmp_path / INDEX_FILE).write_text(json.dumps(index))
    assert "tensor ghost" in damaged(tmp_path)


def test_an_index_that_is_none_is_named(tmp_path):
    (tmp_path / INDEX_FILE).write_text("[]")
    assert INDEX_FILE in damaged(tmp_path)


def write_header(path, header):
    data = json.dumps(header).encode()
    path.write_bytes(len(data).to_bytes(8, "little") + data + bytes(64))


def test_a_header_that_contradicts_itself_or_is_none_is_named(tmp_path):
    file = tmp_path / WEIGHTS_FILE
    write_header(file, {"t": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}})
    assert "tensor t takes 4 bytes" in damaged(tmp_path)
    write_header(file, {"t": {"dtype": "F4", "shape": [2], "data_offsets": [0, 4]}})
    assert "dtype F4" in damaged(tmp_path)
    write_header(file, {"t": {"dtype": "F32"}})
    assert "not a safetensors file" in damaged(tmp_path)
    file.write_bytes((4).to_bytes(8, "little") + b"\xff\xfe{}" + bytes(64))
    assert "not a safetensors file" in damaged(tmp_path)


def entry(begin, end, **more):
    shape = [(end - begin) // 4]
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]} | more


NESTED = b'{"a": ' + b"[" * 100_000


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"a": entry(0, 32), "b": entry(16, 64)}, "b has the bytes of tensor a too"),
        ({"a": entry(0, 64), "b": entry(0, 64)}, "b has the bytes of tensor a too"),
        ({"a": entry(0, 64), "b": entry(32, 32)}, "b has the bytes of tensor a too"),
        ({"a": entry(0, 16), "b": entry(32, 64)}, "b has a gap before it"),
        ({"a": entry(32, 64)}, "a has a gap before it"),
        ({"a": entry(0, 32)}, "32 at its end belong to no tensor"),
        ({}, "64 at its end belong to no tensor"),
        ({"a": entry(0, 68)}, "truncated"),
        ({"a": entry(-32, 0), "b": entry(0, 64)}, r"data_offsets \[-32, 0\] are no sizes"),
        ({"a": entry(0, 64, shape=[-4, -4])}, r"shape \[-4, -4\] are no sizes"),
        ({"a": entry(0, 64, shape=[16.0])}, "are no sizes"),
        ({"a": entry(0, 64, shape=[16, True])}, "are no sizes"),
        ({"a": entry(0, 64, shape=[2**63, 0])}, "are no sizes"),
        ({"a": entry(0, 64, shape=16)}, "are no sizes"),
        ({"a": entry(0, 64, data_offsets=[0, 64, 64])}, "are not two"),
        ({"a": entry(0, 64, data_offsets=[64, 0])}, "takes -64 bytes"),
        ({"a": 5}, "lacks dtype, shape or data_offsets"),
        ({"a": entry(0, 64, dtype=5)}, "dtype 5"),
        ({"__metadata__": {"x": 1}, "a": entry(0, 64)}, "__metadata__"),
        (b'{"a": 1, "a": 2}', "'a' comes twice"),
        (b"[1, 2]", "no JSON object"),
        (NESTED + b"]" * 100_000 + b"}", "is not a safetensors file"),
        (NESTED, "is not a safetensors file"),
        (b'{"a": {}}\0', "is not a safetensors file"),
    ],
)  # fmt: skip
def test_what_safetensors_refuses_is_refused(tmp_path, header, message):
    data = header if isinstance(header, bytes) else json.dumps(header).encode()
    file = tmp_path / WEIGHTS_FILE
    file.write_bytes(len(data).to_bytes(8, "little") + data + bytes(64))
    with pytest.raises(safetensors.SafetensorError):
        safetensors.numpy.load_file(file)
    with pytest.raises(CheckpointError, match=message) as error:
        TensorReader(tmp_path)
    assert "\n" not in str(error.value)


def test_empty_tensors_and_metadata_take_no_bytes(tmp_path):
    header = {"__metadata__": None, "a": entry(0, 0), "b": entry(0, 64), "c": entry(64, 64)}
    write_header(tmp_path / WEIGHTS_FILE, header)
    assert TensorReader(tmp_path).names == ["a", "b", "c"]


def two_shards(folder):
    """t0 and t1 in a file each, with an index that the tests then change."""
    files = write(folder, arrays_of([(4,), (4,)], np.float32), max_shard_size=16)
    return files, json.loads((folder / INDEX_FILE).read_text())


def test_the_size_in_an_index_and_tensors_that_it_leaves_out_do_not_matter(tmp_path):
    """As under transformers, which reads every tensor of every file that the index names."""
    files, index = two_shards(tmp_path)
    # Copies, since the file that they would be mapped from is written again.
    whole = {name: np.array(x) for name, x in read_all(tmp_path).items()}
    safetensors.numpy.save_file({"t0": whole["t0"], "more": whole["t0"]}, files[0])
    (tmp_path / INDEX_FILE).write_text(json.dumps(index | {"metadata": {"total_size": -5}}))
    assert_equal(read_all(tmp_path), whole | {"more": whole["t0"]})


def test_one_file_of_all_tensors_comes_before_an_index(tmp_path):
    files, _ = two_shards(tmp_path)
    files[1].unlink()
    tensors = arrays_of([(2,)], np.float32)
    safetensors.numpy.save_file(tensors, tmp_path / WEIGHTS_FILE)
    assert_equal(read_all(tmp_path), tensors)


def test_an_index_and_files_that_contradict_each_other_are_named(tmp_path):
    files, index = two_shards(tmp_path)
    both = read_all(tmp_path)
    files[1].write_bytes(safetensors.numpy.save(both))
    assert "tensor t0 is in model-00001-of-00002.safetensors and in" in damaged(tmp_path)
    swapped = dict(zip(index["weight_map"], reversed(index["weight_map"].values()), strict=True))
    for weight_map, message in (
        (swapped, "tensor t0 is in"),
        ({}, "is not an index"),
        ({"t0": 5}, "is not an index"),
        ({"t0": "../other/model.safetensors"}, "is no file of this folder"),
    ):
        two_shards(tmp_path)
        (tmp_path / INDEX_FILE).write_text(json.dumps(index | {"weight_map": weight_map}))
        assert message in damaged(tmp_path)
