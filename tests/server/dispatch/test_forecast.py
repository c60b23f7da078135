"""How long sequences are thought to take, from those that have ended."""

from distaff.runtime.request import Request, SamplingParams
from distaff.server.dispatch.forecast import Forecast

from .scripted import STEPS


def asked(max_tokens: int | None) -> Request:
    return Request(id="a", prompt=(1, 2, 3), params=SamplingParams(max_tokens=max_tokens, stop_ids=(2,)))


def cost_of_an_answer(forecast: Forecast) -> float:
    """Of one whose length is open, in steps."""
    return forecast.cost(asked(4000)) / forecast.factor


def learned(*ends: tuple[int, int, bool]) -> Forecast:
    """From ends: how often, after how many tokens, whether at the bound."""
    forecast = Forecast()
    forecast.factor = 1.0
    forecast.learn_steps([STEPS])
    for count, tokens, cut in ends:
        for _ in range(count):
            forecast.learn(tokens, cut=cut)
    return forecast


def test_an_answer_is_as_long_as_others_that_ended_by_themselves():
    assert 490 < cost_of_an_answer(learned((50, 500, False))) < 510


def test_what_was_cut_at_its_bound_does_not_make_answers_short():
    """Embeddings and scored prompts are given one token each."""
    assert 490 < cost_of_an_answer(learned((50, 500, False), (500, 1, True))) < 510
    assert cost_of_an_answer(learned((500, 1, True))) > 3000


def test_what_was_cut_later_than_usual_makes_them_longer():
    assert cost_of_an_answer(learned((50, 100, False), (100, 1000, True))) > 900
