import math

import pytest
import torch
from pytorch_metric_learning.losses import ArcFaceLoss, CosFaceLoss

from retrieval.training import losses

DIM, CLASSES, BATCH = 8, 5, 12


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(7)


def slow_margin_softmax(descriptors, weights, labels, s, m, kind):
    """Mean cross entropy, one example and one class at a time."""
    total = 0.0
    for x, label in zip(descriptors.tolist(), labels.tolist(), strict=True):
        logits = []
        for k, w in enumerate(weights.tolist()):
            cosine = sum(a * b for a, b in zip(x, w, strict=True)) / (
                math.hypot(*x) * math.hypot(*w)
            )
            if k == label and kind == "cosface":
                cosine -= m
            elif k == label:
                angle = math.acos(cosine)
                past = angle > math.pi - m
                cosine = cosine - m * math.sin(m) if past else math.cos(angle + m)
            logits.append(s * cosine)
        top = max(logits)
        total += top + math.log(sum(math.exp(v - top) for v in logits)) - logits[label]
    return total / len(labels)


def problem(generator):
    descriptors = torch.randn(BATCH, DIM, generator=generator)
    weights = torch.randn(CLASSES, DIM, generator=generator)
    labels = torch.randint(CLASSES, (BATCH,), generator=generator)
    descriptors[0] = -weights[labels[0]] + 0.05  # an angle past pi - m
    return descriptors, weights, labels


def loss_of(classifier, descriptors, labels):
    return losses.classification_loss(classifier(descriptors, labels), labels)


@pytest.mark.parametrize(("kind", "s", "m"), [("cosface", 30, 0.4), ("arcface", 45.25, 0.1)])
def test_margin_classifier_equals_first_principles(generator, kind, s, m):
    descriptors, weights, labels = problem(generator)
    classifier = losses.MarginClassifier(DIM, CLASSES, s, m, kind)
    classifier.weight.data.copy_(weights)
    expected = slow_margin_softmax(descriptors, weights, labels, s, m, kind)
    assert loss_of(classifier, descriptors, labels).item() == pytest.approx(expected, rel=1e-5)


def test_margin_classifier_equals_pytorch_metric_learning(generator):
    descriptors, weights, labels = problem(generator)
    degrees = math.degrees(0.3)
    pairs = [
        ("cosface", 0.4, CosFaceLoss(CLASSES, DIM, margin=0.4, scale=30)),
        ("arcface", 0.3, ArcFaceLoss(CLASSES, DIM, margin=degrees, scale=30)),
    ]
    for kind, margin, oracle in pairs:
        oracle.W.data.copy_(weights.T)
        classifier = losses.MarginClassifier(DIM, CLASSES, 30, margin, kind)
        classifier.weight.data.copy_(weights)
        ours, theirs = loss_of(classifier, descriptors, labels), oracle(descriptors, labels)
        assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
        ours.backward()
        theirs.backward()
        gradient = classifier.weight.grad
        assert gradient is not None
        assert torch.allclose(gradient, oracle.W.grad.T, atol=1e-5)


def test_only_the_true_class_has_a_margin_and_scale_does_not_matter(generator):
    descriptors, weights, labels = problem(generator)
    classifier = losses.MarginClassifier(DIM, CLASSES, s=10, m=0.4, kind="cosface")
    classifier.weight.data.copy_(weights)
    plain = losses.MarginClassifier(DIM, CLASSES, s=10, m=0.0, kind="cosface")
    plain.weight.data.copy_(3 * weights)
    difference = plain(5 * descriptors, labels) - classifier(descriptors, labels)
    true = torch.nn.functional.one_hot(labels, CLASSES).bool()
    assert torch.allclose(difference[true], torch.tensor(4.0), atol=1e-5)
    assert torch.allclose(difference[~true], torch.tensor(0.0), atol=1e-5)


def test_defaults_are_cosplaces():
    classifier = losses.MarginClassifier(DIM, CLASSES)
    assert (classifier.kind, classifier.s, classifier.m) == ("cosface", 30.0, 0.40)
    assert classifier.weight.abs().max() <= math.sqrt(6 / (DIM + CLASSES))  # Xavier uniform
    assert "classes=5" in repr(classifier)


def test_an_unknown_margin_is_refused():
    with pytest.raises(ValueError, match="cosface"):
        losses.margin_logits(torch.zeros(1, 2), torch.zeros(1, dtype=torch.long), 1, 0, "sphere")


def test_arcface_gradient_is_finite_at_the_class_centre():
    classifier = losses.MarginClassifier(DIM, 2, 30, 0.1, "arcface")
    descriptors = classifier.weight.detach().clone().requires_grad_()
    loss_of(classifier, descriptors, torch.tensor([0, 1])).backward()
    assert descriptors.grad is not None
    assert torch.isfinite(descriptors.grad).all()


def test_losses_are_float32_under_autocast(generator):
    descriptors, _, labels = problem(generator)
    margin = losses.MarginClassifier(DIM, CLASSES)
    attention = losses.AttentionClassifier(DIM, CLASSES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = [margin(descriptors, labels), attention(descriptors)]
        mse = losses.reconstruction_loss(descriptors.bfloat16(), descriptors.bfloat16() + 1)
        values += [losses.contrastive(descriptors[:3]), mse]
    assert all(value.dtype == torch.float32 for value in values)
    assert torch.equal(values[0], margin(descriptors, labels))
    assert torch.equal(values[1], attention(descriptors))


def test_attention_classifier_is_a_softmax_over_a_linear_layer(generator):
    pooled, _, labels = problem(generator)
    classifier = losses.AttentionClassifier(DIM, CLASSES)
    weight, bias = classifier.weight.tolist(), classifier.bias.tolist()
    total = 0.0
    for x, label in zip(pooled.tolist(), labels.tolist(), strict=True):
        logits = [
            b + sum(u * v for u, v in zip(x, row, strict=True))
            for row, b in zip(weight, bias, strict=True)
        ]
        total += math.log(sum(math.exp(v) for v in logits)) - logits[label]
    value = losses.classification_loss(classifier(pooled), labels)
    assert value.item() == pytest.approx(total / BATCH, rel=1e-5)


def test_reconstruction_is_the_mean_over_all_values(generator):
    a, b = torch.randn(2, 2, 3, 2, 2, generator=generator).unbind()
    pairs = zip(a.flatten().tolist(), b.flatten().tolist(), strict=True)
    expected = sum((x - y) ** 2 for x, y in pairs) / a.numel()
    assert losses.reconstruction_loss(a, b).item() == pytest.approx(expected, rel=1e-5)


@pytest.fixture
def row(generator):
    """The descriptors of a tuple: a query, a positive, three negatives."""
    rows = torch.nn.functional.normalize(torch.randn(5, 3, generator=generator))
    rows[2] = rows[0] + 0.1  # a negative inside the margin
    return rows


def distances(rows):
    """Of the positive, and of each negative, to the query."""
    positive, *negatives = (math.dist(each, rows[0].tolist()) for each in rows[1:].tolist())
    return positive, negatives


@pytest.mark.parametrize("margin", [0.7, 0.85])
def test_contrastive_equals_a_loop_over_the_tuple(row, margin):
    positive, negatives = distances(row)
    expected = 0.5 * positive**2 + sum(0.5 * max(0.0, margin - d) ** 2 for d in negatives)
    assert losses.contrastive(row, margin).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("margin", [0.1, 1.5])
def test_triplet_equals_a_loop_over_the_tuple(row, margin):
    positive, negatives = distances(row)
    expected = sum(max(0.0, positive**2 - d**2 + margin) for d in negatives)
    assert losses.triplet(row, margin).item() == pytest.approx(expected, rel=1e-5)


def test_contrastive_gradient_is_finite_for_equal_descriptors():
    x = torch.ones(3, 4, requires_grad=True)
    losses.contrastive(x).backward()
    assert x.grad is not None
    assert not x.grad.any()
