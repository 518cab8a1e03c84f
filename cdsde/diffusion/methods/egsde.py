r"""EGSDE (Zhao et al. 2022, arXiv 2207.06635): drops the source domain's look, keeps the layout.

E(y, x_t, t) = λ_s E_s(y, x_t, t) + λ_i E_i(y, x_t, t)    (equation 8)
E_s = mean over positions of cos(F(y, t), F(x_t, t)),   F the features of a domain classifier
E_i = ‖φ(y) - φ(x_t)‖²,                                 φ the low-pass of factor N

The same λ_s and λ_i hold at every level (`composition.make_levels`); the ancestral step multiplies
the gradient by β/√(1-β) of its level (`solvers/ancestral.py`).
"""

from __future__ import annotations

from cdsde.diffusion.methods.method import Method, Setting, Term, start_setting

SIMILARITIES = ("cosine", "neg_l2")


def terms(settings) -> tuple[Term, ...]:
    """The domain energy E_s and the content energy E_i."""
    from cdsde.diffusion import energies

    def domain(networks):
        features = energies.of_classifier(networks["classifier"])
        return energies.domain(features, settings.domain_similarity)

    def content(networks):
        return energies.content(settings.factor, settings.content_similarity)

    quadratic = settings.content_similarity == "neg_l2"
    return (
        Term(domain, settings.domain_weight),
        Term(content, settings.content_weight, quadratic=quadratic),
    )


EGSDE = Method(
    name="egsde",
    title="EGSDE",
    networks=("score", "classifier"),
    settings={
        "start": start_setting(500),
        "domain_weight": Setting(
            500.0,
            "λ_s of the domain energy.",
            minimum=0,
            changeable=True,
            slider="λ_s, away from the source",
        ),
        "domain_similarity": Setting(
            "cosine", "Similarity of the classifier's features in the domain energy.", SIMILARITIES
        ),
        "content_weight": Setting(
            2.0,
            "λ_i of the content energy.",
            minimum=0,
            changeable=True,
            slider="λ_i, low frequencies",
        ),
        "content_similarity": Setting(
            "neg_l2", "Similarity of the low-passed images in the content energy.", SIMILARITIES
        ),
        "factor": Setting(32, "Factor N of the content energy's low-pass.", minimum=1),
    },
    terms=terms,
)
