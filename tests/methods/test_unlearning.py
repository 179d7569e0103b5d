"""Unlearning: by its definition, in plain loops; and a training image that is the query is forgotten most."""

import numpy as np
import torch

from dtrak.methods.query import Query
from dtrak.methods.settings import Setting
from dtrak.methods.unlearning import FLOOR, RISE, STEPS, fisher_diagonal, forget, training_losses
from dtrak.models.loading import load_study_model
from tests.oracle import gradient, loss_at


def test_the_scores_are_those_of_plain_loops(attributor, query):
    scores, _ = attributor.scores(Setting("unlearning"), query, attributor.features(query, [Setting("unlearning")]))
    table, model = attributor.table, load_study_model(attributor.folder)
    model.network.double()
    model.dtype = torch.float64
    times = list(range(0, 1000, 100))
    rows = range(table.train_size)

    def losses():
        found = []
        for row in rows:
            x = model.encode(table.pixels[row][None])[0]
            found.append(loss_at(model, x, table.records[row].id, model.condition([table.names[row]]), times))
        return np.array(found)

    def gradient_of(pixels, sample_id, label):
        x = model.encode(pixels[None])[0]
        return gradient(model, x, sample_id, model.condition([label]), "loss", times)

    squares = [gradient_of(table.pixels[row], table.records[row].id, table.names[row]) ** 2 for row in rows]
    fisher = np.mean(squares, axis=0)
    before, start = losses(), None
    for _ in range(STEPS):
        g = gradient_of(query.pixels, query.id, query.label)
        x = model.encode(query.pixels[None])[0]
        start = start or loss_at(model, x, query.id, model.condition([query.label]), times)
        step = g / (fisher + FLOOR * fisher.mean())
        step, place = torch.from_numpy(RISE * start / STEPS / (g @ step) * step), 0
        with torch.no_grad():
            for parameter in model.parameters().values():
                parameter += step[place : place + parameter.numel()].reshape(parameter.shape)
                place += parameter.numel()
    wanted = losses() - before
    np.testing.assert_allclose(scores, wanted, rtol=2e-2, atol=2e-3 * np.abs(wanted).max())


def test_forgetting_raises_the_querys_loss_and_batches_change_nothing(attributor):
    table = attributor.table
    query = Query(np.asarray(table.pixels[3]), table.names[3])
    found = []
    for size in (16, 3):
        model = load_study_model(attributor.folder)
        before = training_losses(attributor, model)
        forget(model, query, fisher_diagonal(attributor, model), size)
        found.append(training_losses(attributor, model) - before)
    assert found[0][3] > 0
    assert found[0].argmax() == 3
    np.testing.assert_allclose(found[1], found[0], rtol=1e-3, atol=1e-6)
