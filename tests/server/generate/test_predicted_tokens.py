"""What usage says about speculation; other models say nothing about it."""

from __future__ import annotations

from running_server import RunningServer, Start, events

ONE_GUESS_WRONG = {"accepted_prediction_tokens": 4, "rejected_prediction_tokens": 4}


def test_usage_counts_what_was_guessed(start: Start) -> None:
    with start(speculates=True) as server:
        # Two guesses for each token, of which one can be right.
        server.engine.num_guessed = 2
        assert server.chat().json()["usage"]["completion_tokens_details"] == ONE_GUESS_WRONG
        assert server.complete().json()["usage"]["completion_tokens_details"] == ONE_GUESS_WRONG
        both = server.chat(n=2).json()["usage"]["completion_tokens_details"]
        assert both == {"accepted_prediction_tokens": 8, "rejected_prediction_tokens": 8}
        chunks = events(server.chat(stream=True, stream_options={"include_usage": True}).text)
        assert chunks[-1]["usage"]["completion_tokens_details"] == ONE_GUESS_WRONG


def test_without_drafts_both_are_zero(start: Start) -> None:
    with start(speculates=True) as server:
        details = server.chat().json()["usage"]["completion_tokens_details"]
        assert details == {"accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0}


def test_a_model_that_does_not_speculate_has_no_such_field(server: RunningServer) -> None:
    assert "completion_tokens_details" not in server.chat().json()["usage"]
    assert "completion_tokens_details" not in server.complete().json()["usage"]
