"""Slow, obvious implementations that every fast path is held to: plain loops, float64, no projection tricks."""

import numpy as np
import torch
from scipy.stats import spearmanr

from dtrak.utils.noise import feature_noise, keyed_generator


def output_value(name, prediction, noise, elbo_weight=1.0):
    """f itself, as the paper writes it, for one prediction; autograd does the rest."""
    return {
        "loss": lambda: ((prediction - noise) ** 2).mean(),
        "mean-squared-l2-norm": lambda: (prediction**2).mean(),
        "mean": lambda: prediction.mean(),
        "l1-norm": lambda: prediction.abs().sum(),
        "l2-norm": lambda: prediction.flatten().norm(),
        "linf-norm": lambda: prediction.abs().max(),
        "weighted-mse": lambda: elbo_weight * ((prediction - noise) ** 2).mean(),
    }[name]()


def gradient(model, x, sample_id, condition, output, timesteps, draws=1, seed=0):
    """The unprojected float64 gradient of one sample: one timestep at a time, added in a loop.

    ``model`` must be in float64.
    """
    parameters = list(model.parameters().values())
    total = torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64)
    alphas = model.process.alphas_cumprod.double()
    betas = model.process._scheduler.betas.double()
    for draw in range(draws):
        for t in timesteps:
            noise = torch.from_numpy(feature_noise(seed, sample_id, [(t, draw)], tuple(x.shape))[0]).double()
            x_t = alphas[t] ** 0.5 * x.double() + (1 - alphas[t]) ** 0.5 * noise
            prediction = model.network(x_t[None], torch.tensor([t]), **model.conditioner.told(condition)).sample[0]
            weight = betas[t] / (2 * (1 - betas[t]) * (1 - alphas[t]))
            value = output_value(output, prediction, noise, weight)
            gradients = torch.autograd.grad(value, parameters, allow_unused=True)
            total += torch.cat(
                [
                    (torch.zeros_like(p) if g is None else g).flatten()
                    for g, p in zip(gradients, parameters, strict=True)
                ]
            )
    return (total / (len(timesteps) * draws)).numpy()


def sparse_matrix(input_dim, output_dim, seed):
    """The count sketch as a dense matrix, entry by entry from its definition."""
    bits = np.frombuffer(keyed_generator("sign", seed, "").bytes(-(-input_dim // 8)), np.uint8)
    shifts = keyed_generator("shift", seed, "").integers(0, output_dim, -(-input_dim // output_dim))
    matrix = np.zeros((output_dim, input_dim))
    for j in range(input_dim):
        bit = bits[j // 8] >> (7 - j % 8) & 1
        matrix[(j + shifts[j // output_dim]) % output_dim, j] = 1 if bit else -1
    return matrix


def method_scores(name, train, query, relative_damping, residuals=None):
    """Each method's formula for one model, row by row."""
    train, query = train.astype(np.float64), query.astype(np.float64)
    kernel = train.T @ train
    damping = (relative_damping or 0) * np.trace(kernel) / min(train.shape)
    found = []
    for n, row in enumerate(train):
        if name in ("grad-dot", "tracin", "pixel-dot", "embedding-dot"):
            score = query @ row
        elif name in ("grad-cos", "gas", "pixel-cos", "embedding-cos"):
            score = query @ row / (np.linalg.norm(query) * np.linalg.norm(row))
        else:
            influence = np.linalg.solve(kernel + damping * np.eye(len(kernel)), row)
            score = query @ influence
            if name == "relative-if":
                score /= np.linalg.norm(influence)
            if name == "renormalised-if":
                score /= np.linalg.norm(row)
            if name == "das":
                score = (score * residuals[n] / (1 - row @ influence)) ** 2
        found.append(score)
    return np.array(found)


def mean_of_units(parts):
    """The mean of one image's gradients at several timesteps, each divided by its length."""
    total = np.zeros(parts.shape[1])
    for part in parts.astype(np.float64):
        total += part / np.linalg.norm(part)
    return total / len(parts)


def das_residual(errors):
    """DAS's residual of one image: its root mean squared errors at the timesteps, scaled to length 1, and averaged."""
    return (errors / np.linalg.norm(errors)).mean()


def empirical_influence(masks, losses):
    """Image by image: what models trained without it lose, less what those with it lose."""
    return np.array([losses[~masks[:, n]].mean() - losses[masks[:, n]].mean() for n in range(masks.shape[1])])


def scores(train, query, relative_damping):
    """τ = φ(x)ᵀ (ΦᵀΦ + λI)⁻¹ φ_n by solving the k×k system; λ = relative · trace / min(N, k)."""
    train, query = train.astype(np.float64), query.astype(np.float64)
    kernel = train.T @ train
    damping = relative_damping * np.trace(kernel) / min(train.shape)
    return train @ np.linalg.solve(kernel + damping * np.eye(len(kernel)), query)


def null_statistic(lists, scores):
    """The statistic of each training image for a query's scores, given those of unrelated images [Q, N]."""

    def standardised(row):
        return (row - row.mean()) / row.std()

    z = np.stack([standardised(row) for row in lists])
    spread = z.std(0)
    return (standardised(scores) - z.mean(0)) / np.maximum(spread, 0.1 * np.median(spread))


def partial_lds(scores, masks, losses, counts):
    """The LDS of one query: Spearman's correlation of what a regression on the counts leaves of both sides."""
    columns = np.column_stack([np.ones(len(masks)), counts])

    def left(values):
        return values - columns @ np.linalg.lstsq(columns, values, rcond=None)[0]

    return spearmanr(left(-(masks @ scores)), left(losses)).statistic


def crossfit(every, masks, losses, halves):
    """The mean LDS over queries: λ chosen on each half of the models, judged on the other."""

    def mean(scores, models):
        return np.mean([spearmanr(-(masks[models] @ s), losses[models, q]).statistic for q, s in enumerate(scores)])

    found = []
    for half, other in (halves, halves[::-1]):
        best = max(every, key=lambda scores: mean(scores, half))
        found.append(mean(best, other))
    return np.mean(found)


def bootstrapped_lds(scores, masks, losses, draws):
    """The mean LDS over queries in each resample: each resample ranked and correlated by itself."""
    means = []
    for draw in draws:
        values = []
        for q in range(len(scores)):
            foretold = [-sum(scores[q][n] for n in range(masks.shape[1]) if masks[m, n]) for m in draw]
            truth = losses[draw, q]
            values.append(spearmanr(foretold, truth).statistic)
        means.append(np.mean(values))
    return np.array(means)


def flat(chunk):
    """The gradients of a chunk, for each output as one vector a row."""
    of_outputs = zip(*chunk.gradients, strict=True)
    return [torch.cat([gradient.flatten(1) for gradient in gradients], dim=1) for gradients in of_outputs]


def gauss_newton(network, batches):
    """The Gauss–Newton matrix over all tuned weights, from whole Jacobians: (1/N) Σ_n Jᵀ (2/D) J.

    ``batches`` are inputs, one data point a row.
    """
    parameters = [p for p in network.parameters() if p.requires_grad]
    total, count = 0.0, 0
    for x in batches:
        prediction = network(x)
        for row in prediction:
            outputs = row.flatten()
            jacobian = torch.stack([
                torch.cat([g.flatten() for g in torch.autograd.grad(o, parameters, retain_graph=True)]) for o in outputs
            ])  # fmt: skip
            total, count = total + 2 / len(outputs) * jacobian.T @ jacobian, count + 1
    return total / count


def loss_at(model, x, sample_id, condition, timesteps):
    """The mean loss of one sample over some timesteps, one at a time; ``model`` must be in float64."""
    alphas, total = model.process.alphas_cumprod.double(), 0.0
    for t in timesteps:
        noise = torch.from_numpy(feature_noise(0, sample_id, [(t, 0)], tuple(x.shape))[0]).double()
        x_t = alphas[t] ** 0.5 * x.double() + (1 - alphas[t]) ** 0.5 * noise
        with torch.no_grad():
            prediction = model.network(x_t[None], torch.tensor([t]), **model.conditioner.told(condition)).sample[0]
        total += float(((prediction - noise) ** 2).mean())
    return total / len(timesteps)
