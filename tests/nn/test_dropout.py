"""Seeds per site, and the dropout that has no norm behind it."""

import torch

from fastssl.nn.dropout import dropout, site_seeds
from fastssl.nn.encoder import DropoutSeeds
from fastssl.ops.philox import dropout_scale, layer_norm_keep_mask

# Outputs of SplitMix64 from the state 1234567, as its reference implementation gives them.
KNOWN = (
    6457827717110365317,
    3203168211198807973,
    9817491932198370423,
    4593380528125082431,
    16408922859458223821,
)


def test_site_seeds_are_splitmix64():
    assert tuple(int(seed) % 2**64 for seed in site_seeds(torch.tensor(1234567), 5)) == KNOWN
    assert [s.item() for s in site_seeds(torch.tensor(1234567), 2)] == [k - 2**64 * (k >> 63) for k in KNOWN[:2]]


def test_sites_and_steps_do_not_share_seeds():
    seeds = [int(seed) for step in range(-50, 50) for seed in site_seeds(torch.tensor(step), 40)]
    assert len(set(seeds)) == len(seeds)


def test_every_site_of_an_encoder_has_its_own_seed():
    seeds = DropoutSeeds.derive(torch.tensor(9), 3)
    flat = [seeds.embeddings, *(seed for block in seeds.blocks for seed in block)]
    assert len(flat) == len({int(seed) for seed in flat}) == 10
    assert all(seed.dim() == 0 and seed.dtype == torch.int64 for seed in flat)
    none = DropoutSeeds.derive(None, 3)
    assert none.embeddings is None
    assert all(seed is None for block in none.blocks for seed in block)


def test_dropout_and_its_gradient():
    x = torch.randn(13, 37, requires_grad=True)
    seed = torch.tensor(4)
    y = dropout(x, 0.25, seed)
    scaled_mask = layer_norm_keep_mask(13, 37, 0.25, seed) * dropout_scale(0.25)
    torch.testing.assert_close(y, x * scaled_mask)
    cotangent = torch.randn_like(x)
    (gradient,) = torch.autograd.grad(y, x, cotangent)
    torch.testing.assert_close(gradient, cotangent * scaled_mask)
    assert dropout(x, 0.25, None) is x
    assert dropout(x, 0.0, seed) is x
