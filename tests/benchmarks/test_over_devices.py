"""Tables and plots of work on several numbers of devices."""

from griffin_jax.benchmarks import over_devices


def row(devices, seconds, rows=16, **mesh):
    collectives = {"collectives": {"seconds": 0.0005, "launches": 77}} if devices > 1 else {}
    return {
        "what": "throughput",
        "status": "ok",
        "model": "9b",
        "weights": "nf4",
        "dtype": "bfloat16",
        "prompt": 2048,
        "batch_size": rows,
        "devices": devices,
        "mesh": mesh,
        "seconds_per_token": {"median": seconds},
        "tokens_per_second": rows / seconds,
    } | collectives


def run(*rows, device="NVIDIA H200"):
    return {"kind": "throughput", "machine": {"device": device}, "rows": list(rows)}


RUN = run(row(1, 0.004), row(1, 0.003, rows=1), row(2, 0.0025, model=2), row(4, 0.002, model=4))


def test_a_job_on_several_numbers_of_devices_has_a_line_with_its_efficiency():
    _, text = over_devices.sections([RUN])
    [line] = [line for line in text.splitlines() if "9b" in line]
    assert "16 rows behind 2,048 tokens, NVIDIA H200" in line
    cells = [cell.strip() for cell in line.strip("|").split("|")][1:]
    assert cells == [
        "4.000",
        "2.500 (model 2; 0.500 in collectives; 80%)",
        "2.000 (model 4; 0.500 in collectives; 50%)",
    ]


def test_the_fastest_mesh_counts_and_of_one_mesh_the_first_row():
    older = run(row(2, 0.001, model=2), row(2, 0.002, data=2))
    [(_, found)] = over_devices.jobs([RUN, older]).items()
    assert found[2]["mesh"] == {"data": 2} and list(found) == [1, 2, 4]


def test_there_is_nothing_to_tell_of_one_number_of_devices_or_of_different_ones(tmp_path):
    runs = [run(row(1, 0.004)), run(row(2, 0.002, model=2), device="TPU v5e")]
    assert over_devices.sections(runs) == [] and over_devices.draw(runs, tmp_path) == []


def test_a_line_of_each_job_is_drawn(tmp_path):
    [path] = over_devices.draw([RUN], tmp_path)
    assert path.name == "over-devices-throughput.png" and path.read_bytes()[1:4] == b"PNG"


def step(devices, **changes):
    return {
        "what": "training",
        "status": "ok",
        "devices": devices,
        "mesh": {"fsdp": devices} if devices > 1 else {},
        "parameters": 10**9,
        "dtype": "bfloat16",
        "batch_size": 16,
        "length": 2048,
        "remat": "none",
        "loss_chunks": 8,
        "microbatches": 1,
        "seconds": {"median": 0.4 / devices},
        "tokens_per_second": devices * 80_000,
        "losses": [8.0, 4.0, 2.0],
    } | changes


def test_training_is_named_by_its_size():
    _, text, *_ = over_devices.sections([run(step(1), step(2))])
    assert "training, 1.00B parameters, bfloat16, 16 x 2,048" in text
    assert "200.000 (fsdp 2; 100%)" in text


def test_losses_of_every_mesh_are_held_against_those_of_one_device():
    both = {"fsdp": 2, "model": 2}
    rows = [
        step(1),
        step(4, losses=[8.0, 4.5, 2.0]),
        # The slower mesh of as many devices counts, too; another number of steps has no match.
        step(4, mesh=both, losses=[8.0, 4.0, 1.75], tokens_per_second=1),
        step(2, losses=[8.0, 4.0]),
        step(2, dtype="float32", losses=[9.0, 9.0, 9.0]),
    ]
    *_, text = over_devices.sections([run(*rows)])
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")][1:]
        for line in text.splitlines()
        if "1.00B" in line
    ]
    assert lines == [
        ["3", "fsdp 4", "8.0000 to 2.0000", "5.0e-01 (step 2)", "1.2e-01"],
        ["3", "fsdp 2, model 2", "8.0000 to 2.0000", "2.5e-01 (step 3)", "1.2e-01"],
    ]
