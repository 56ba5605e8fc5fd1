"""The transformer of ADTR against torch's and against its equations; the grid; the scores."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from anomaly_bench.components.feature_transformer import Block, FeatureTransformer, grid_features, scored, tokens
from anomaly_bench.errors import UsageError


def small(dropout=0.0):
    torch.manual_seed(0)
    network = FeatureTransformer(12, 9, width=16, heads=4, layers=2, hidden=24, dropout=dropout).double()
    for norm in (module for module in network.modules() if isinstance(module, nn.LayerNorm)):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return network


def copied(block, layer):
    """Torch's layer gets the block's weights."""
    layer.self_attn.load_state_dict(block.attentions[0].state_dict())
    if len(block.attentions) == 2:
        layer.multihead_attn.load_state_dict(block.attentions[1].state_dict())
    layer.linear1.load_state_dict(block.hidden[0].state_dict())
    layer.linear2.load_state_dict(block.hidden[3].state_dict())
    for number, norm in enumerate(block.norms, 1):
        getattr(layer, f"norm{number}").load_state_dict(norm.state_dict())


def test_it_is_torchs_transformer_without_positions():
    network = small()
    nn.init.zeros_(network.positions)
    theirs = nn.Transformer(16, 4, 2, 2, 24, dropout=0.0, batch_first=True).double()
    theirs.encoder.norm = None
    for blocks, layers in ((network.encoder, theirs.encoder.layers), (network.decoder, theirs.decoder.layers)):
        for block, layer in zip(blocks, layers, strict=True):
            copied(block, layer)
    theirs.decoder.norm.load_state_dict(network.norm.state_dict())
    features = torch.randn(3, 9, 12).double()
    expected = network.restore(theirs(network.reduce(features), network.queries.expand(3, -1, -1)))
    torch.testing.assert_close(network(features), expected)


def test_a_block_follows_its_equations():
    """Post-norm; positions in queries and keys of every attention, not in values."""
    torch.manual_seed(0)
    block = Block(16, 4, 24, 0.0, 2).double()
    mine, others, positions = (torch.randn(9, 16).double() for _ in range(3))

    def attended(attention, to, values):
        weight, bias = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
        query = (to + positions) @ weight[0].T + bias[0]
        key, value = (values + positions) @ weight[1].T + bias[1], values @ weight[2].T + bias[2]
        parts = zip(*(part.split(4, dim=1) for part in (query, key, value)), strict=True)
        return attention.out_proj(torch.cat([(q @ k.T / 2).softmax(dim=1) @ v for q, k, v in parts], dim=1))

    x = block.norms[0](mine + attended(block.attentions[0], mine, mine))
    x = block.norms[1](x + attended(block.attentions[1], x, others))
    x = block.norms[2](x + block.hidden[3](block.hidden[0](x).clamp(min=0)))
    torch.testing.assert_close(block(mine[None], positions, others[None])[0], x)


def test_parameters_of_the_paper():
    with torch.device("meta"):
        network = FeatureTransformer(720, 256, width=256, heads=8, layers=4, hidden=1024, dropout=0.1)
    counts = {name: sum(each.numel() for each in part.parameters()) for name, part in network.named_children()}
    assert counts["encoder"] + counts["decoder"] + counts["norm"] == 7_373_312
    assert counts["reduce"] + counts["restore"] == 369_616
    assert network.queries.numel() == network.positions.numel() == 65_536


def test_tokens_with_their_positions_have_no_order():
    network, order = small(), torch.randperm(9)
    features = torch.randn(2, 9, 12).double()
    expected = network(features)[:, order]
    assert not torch.allclose(network(features[:, order]), expected)
    for parameter in (network.positions, network.queries):
        parameter.data = parameter.data[order]
    torch.testing.assert_close(network(features[:, order]), expected)


def test_queries_alone_without_attention_to_the_encoder():
    network = small()
    first, second = torch.randn(2, 1, 9, 12).double()
    assert not torch.allclose(network(first), network(second))
    for block in network.decoder:
        nn.init.zeros_(block.attentions[1].in_proj_weight[32:])  # of the values
    assert torch.equal(network(first), network(second))


def test_initial_weights():
    network = FeatureTransformer(12, 900, width=16, heads=4, layers=1, hidden=24, dropout=0.1)
    for table in (network.queries, network.positions):
        assert float(table.detach().std()) == pytest.approx(0.02, rel=0.05)
    bound = (6 / (16 + 24)) ** 0.5  # Glorot's
    largest = float(network.encoder[0].hidden[0].weight.abs().max())
    assert 0.9 * bound < largest <= bound
    assert not network.restore.bias.any()


def test_levels_are_averaged_or_enlarged():
    fine, coarse = torch.rand(2, 3, 8, 8), torch.rand(2, 5, 2, 2)
    found = grid_features([fine, coarse], 4)
    torch.testing.assert_close(found[:, :3], fine.view(2, 3, 4, 2, 4, 2).mean(dim=(3, 5)))
    torch.testing.assert_close(found[:, 3:], F.interpolate(coarse, scale_factor=2, mode="bilinear"))
    assert torch.equal(tokens(found)[1, 4 * 2 + 3], found[1, :, 2, 3])


def test_scores_by_hand():
    errors = torch.zeros(2, 16, 3)
    errors[0] = torch.tensor([3.0, 0.0, -4.0])
    errors[1, 5] = 1.0
    found = scored(errors, 4, (256, 256))
    assert torch.equal(found.map[0], torch.full((256, 256), 5.0))
    torch.testing.assert_close(found.image[0], torch.tensor(5.0))
    assert float(found.map[1].max()) == pytest.approx(3**0.5, rel=0.02)
    assert (found.map[1, :32], found.map[1, :, 160:]) == (pytest.approx(0), pytest.approx(0))
    expected = F.avg_pool2d(found.map[1][None, None], 16, stride=1).max()
    assert float(found.image[1]) == float(expected)
    spot = torch.zeros(1, 256 * 256, 1)
    spot[0, 300 * 100] = 2.56
    assert float(scored(spot, 256, (256, 256)).image) == pytest.approx(0.01)


def test_a_width_that_the_heads_cannot_share():
    with pytest.raises(UsageError, match=r"method.width=10: expected a multiple of method.heads=4"):
        FeatureTransformer(12, 9, width=10, heads=4, layers=1, hidden=24, dropout=0.1)
