"""A few clients for a few seconds; `load` has very many for long."""

from tests.serving.load import KINDS, Clients, Watch, wrong_answers
from tests.serving.test_operations import until


def test_every_answer_under_load_is_the_lone_one_and_nothing_is_left(server, lm):
    clients = Clients(server.url, seconds=0, tokens=16, least=40)
    clients.run(12)
    until(lambda: not server.service.worker.num_open)
    assert not [x for x in clients.counts if "failed" in x]
    assert len(clients.answers) >= 40 and {*KINDS} <= {*clients.counts}
    assert not wrong_answers(lm, clients.answers)
    assert Watch(server).look()["open"] == 0
