"""A few clients for a few seconds; `load` has very many for long."""

from tests.serving.load import Clients, Watch, wrong_answers
from tests.serving.test_operations import until


def test_every_answer_under_load_is_the_lone_one_and_nothing_is_left(server, lm):
    clients = Clients(server.url, seconds=2.0, tokens=16)
    clients.run(12)
    until(lambda: not server.service.worker.num_open)
    assert len(clients.answers) > 20 and not [x for x in clients.counts if "failed" in x]
    assert {"whole", "stream", "left", "broken"} <= set(clients.counts)
    assert not wrong_answers(lm, clients.answers)
    assert Watch(server).look()["open"] == 0
