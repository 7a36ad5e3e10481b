import pytest
import torch

from benchmarks import memory
from benchmarks.environment import describe
from benchmarks.limits import LinearShape, copy_of, sgemm_of, square_sgemm


def test_limits_know_their_work():
    shapes = [LinearShape(rows=8, inputs=16, outputs=32, count=3), LinearShape(rows=4, inputs=8, outputs=8)]
    assert sgemm_of(shapes).work == 6 * (3 * 8 * 16 * 32 + 4 * 8 * 8)
    assert square_sgemm(16).work == 2 * 16**3
    assert copy_of(4096).work == 4096
    for limit in (sgemm_of(shapes), square_sgemm(16), copy_of(4096)):
        assert limit.launch() > 0


def test_repeated_shapes_are_weighted_but_run_once():
    once, often = (LinearShape(rows=64, inputs=64, outputs=64, count=count) for count in (1, 1000))
    assert sgemm_of([often]).launch() > 10 * min(sgemm_of([once]).launch() for _ in range(5))


@pytest.mark.skipif(not memory.can_measure(), reason="this system does not report peak memory")
def test_peak_memory_counts_scratch_and_not_what_is_returned():
    megabyte = 2**20

    def work() -> dict[str, torch.Tensor]:
        scratch = torch.ones(48 * megabyte // 4)
        return {"result": scratch[: 16 * megabyte // 4].clone()}

    assert 40 * megabyte < memory.peak_bytes(work) < 60 * megabyte


def test_environment_describes_this_machine():
    environment = describe()
    assert environment.num_threads == torch.get_num_threads()
    assert environment.versions["torch"] == torch.__version__
    assert environment.sgemm_gflops > 0 and environment.copy_gbytes > 0
    assert environment.machine == environment.machine.lower()
    assert not set(environment.machine) & set(" /()@")
