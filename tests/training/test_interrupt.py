import os
import signal
import threading

import pytest

from fastssl.training.interrupt import StopRequest


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted_and_the_second_acts(number):
    seen = []
    outside = signal.signal(number, lambda *_: seen.append("outside"))
    try:
        with StopRequest() as stop:
            assert not stop
            os.kill(os.getpid(), number)
            assert stop and stop.received == number and not seen
            os.kill(os.getpid(), number)
            assert seen == ["outside"]
        os.kill(os.getpid(), number)
        assert seen == ["outside", "outside"]
    finally:
        signal.signal(number, outside)


def test_handlers_are_given_back():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with StopRequest():
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_outside_the_main_thread_it_does_nothing():
    errors = []

    def work():
        try:
            with StopRequest() as stop:
                assert not stop
        except ValueError as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not errors
