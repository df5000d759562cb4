"""Every layer people train: each public function of jax.nn and of optax.losses has its rule.

Or it has a reason why not; or it is to come, and the notebook that will bring it is named.
"""

import inspect

import jax.nn
import optax.losses
import pytest

from handgrad.layers import RULES

# Our rules that bear another name than theirs.
OURS = {
    jax.nn: {
        "dot_product_attention": "attention",
        "hard_swish": "hard_silu",
        "standardize": "layer_norm",
        "swish": "silu",
    },
    optax.losses: {
        "convex_kl_divergence": "generalized_kl_divergence",
        "hinge_loss": "hinge",
        "huber_loss": "huber",
        "sigmoid_binary_cross_entropy": "sigmoid_cross_entropy",
        "sigmoid_focal_loss": "focal",
        "softmax_cross_entropy_with_integer_labels": "softmax_cross_entropy",
        "triplet_margin_loss": "triplet",
    },
}

# Our names for what is to come, and its notebook. Whoever brings the rule deletes the line, or
# moves it to OURS where the names differ.
TO_COME = {
    jax.nn: {},
    optax.losses: {
        "ctc_loss": ("ctc_loss", "23_paths"),
    },
}

WHY_NOT = {
    jax.nn: {
        "get_scaled_dot_general_config": "returns a configuration, not an array",
        "identity": "its cotangent passes as it is",
        "log1mexp": "log(1 - exp(-x)) is a step of some likelihoods, and no layer",
        "logmeanexp": "logsumexp less a constant, with the same gradient",
        "one_hot": "takes integers, which have no gradient",
        "scaled_dot_general": "a product of matrices in a low precision: its gradient is linear's",
        "scaled_matmul": "a product of matrices in a low precision: its gradient is linear's",
    },
    optax.losses: {
        "binary_dice_loss": "dice_loss for one class",
        "cosine_similarity": "1 less cosine_distance",
        "ctc_loss_with_forward_probs": "ctc_loss, and the table that it fills on its way",
        "dice_loss": "a quotient of sums over all pixels: exercise 10.5",
        "l2_loss": "half of squared_error",
        "make_fenchel_young_loss": "returns a loss, whose gradient is max_fun's less the target",
        "multiclass_generalized_dice_loss": "dice_loss, its classes weighted by the targets",
        "multiclass_hinge_loss": "a largest entry less the label's, e_i - e_y: exercise 10.3",
        "multiclass_perceptron_loss": "a largest entry less the label's: e_i - e_y",
        "ntxent": "info_nce, told from the other rows of its own side, too: exercise 20.5",
        "perceptron_loss": "hinge with a margin of 0",
        "poly_loss_cross_entropy": "adds a multiple of 1 - o_y: exercise 10.2",
        "ranking_softmax_loss": "softmax_cross_entropy, the entries of a list for its classes",
        "safe_softmax_cross_entropy": "softmax_cross_entropy, which is as safe for a logit of -inf",
        "smooth_labels": "makes targets, and is linear in them",
        "sparsemax_loss": "multiclass_sparsemax_loss of the logits (0, z)",
    },
}

each_module = pytest.mark.parametrize("theirs", OURS, ids=lambda module: module.__name__)


def functions(module):
    """The names of a module's public functions."""
    members = {name: getattr(module, name) for name in dir(module) if not name.startswith("_")}
    return {n for n, f in members.items() if callable(f) and not inspect.isclass(f)}


@each_module
def test_each_function_has_its_rule_or_a_reason_why_not(theirs):
    ruled = {name for name in functions(theirs) if OURS[theirs].get(name, name) in RULES}
    missing = functions(theirs) - ruled - set(TO_COME[theirs]) - set(WHY_NOT[theirs])
    assert not missing, f"neither a rule nor a reason: {', '.join(sorted(missing))}"
    twice = ruled & set(WHY_NOT[theirs]) | set(TO_COME[theirs]) & set(WHY_NOT[theirs])
    assert not twice, f"a reason why not, and a rule: {', '.join(sorted(twice))}"
    unknown = {*OURS[theirs], *TO_COME[theirs], *WHY_NOT[theirs]} - functions(theirs)
    assert not unknown, f"not in {theirs.__name__}: {', '.join(sorted(unknown))}"


@each_module
def test_what_has_come_is_no_longer_to_come(theirs):
    here = [name for name, (ours, _) in TO_COME[theirs].items() if ours in RULES]
    assert not here, f"has its rule now: {', '.join(here)}"


@each_module
def test_a_rule_under_another_name_is_there(theirs):
    assert set(OURS[theirs].values()) <= set(RULES)
