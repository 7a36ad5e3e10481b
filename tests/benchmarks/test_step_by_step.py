import time

import pytest

from benchmarks.step_by_step import StepByStep


def test_a_loop_goes_on_by_one_step_a_launch():
    steps = []

    def train(pause) -> None:
        for number in range(4):
            time.sleep(0.02)
            steps.append(number)
            pause()

    launch = StepByStep(train)
    assert steps == [0]
    assert 0.02 <= launch() < 1 and steps == [0, 1]
    launch()
    launch()
    assert steps == [0, 1, 2, 3]
    with pytest.raises(RuntimeError, match="has ended"):
        launch()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_failure_of_the_loop_is_the_cause():
    def train(pause) -> None:
        raise ValueError("no such batch")

    with pytest.raises(RuntimeError) as found:
        StepByStep(train)
    assert str(found.value.__cause__) == "no such batch"
