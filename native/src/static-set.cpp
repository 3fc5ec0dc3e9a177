#include "static-set.h"

bool pyskip_static_expand(pyskip_policy & policy, pyskip_static_set & set, std::string & error) {
    if (policy.type != PYSKIP_POLICY_STATIC || policy.n_sublayers <= 0) {
        return true;
    }
    if (policy.static_by < 0 || policy.static_by > PYSKIP_STATIC_BY_NORM) {
        error = "static_by " + std::to_string(policy.static_by) + " is unknown: give one of pyskip_static_by";
        return false;
    }
    const auto    by    = (pyskip_static_by) policy.static_by;
    const int32_t n     = policy.n_sublayers;
    const int32_t found = policy.profile ? pyskip_profile_get_static(policy.profile, by, nullptr, 0) : 0;
    if (n > found) {
        error = "static n is " + std::to_string(n) + ", but the profile names " +
                (found > 0 ? std::to_string(found) : "no sublayers") +
                ": look for them with pyskip calibrate --static " + std::to_string(n) + ", or name layers";
        return false;
    }
    std::vector<pyskip_static_step> steps(n);
    pyskip_profile_get_static(policy.profile, by, steps.data(), n);
    set = {};
    for (const pyskip_static_step & step : steps) {
        (step.sublayer == PYSKIP_SUBLAYER_FFN ? set.layers : set.attention).push_back(step.il);
    }
    policy.layers             = set.layers.data();
    policy.n_layers           = set.layers.size();
    policy.attention_layers   = set.attention.data();
    policy.n_attention_layers = set.attention.size();
    return true;
}
