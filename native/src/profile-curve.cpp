// The curve of a profile between its points.

#include "profile.h"

#include <cmath>
#include <cstdio>

static constexpr float BEYOND = 5e-4f; // of the last rate, which is known to 3 digits

std::vector<pyskip_hold_point> pyskip_profile_thresholds(const pyskip_profile & profile, pyskip_sublayer sublayer) {
    std::vector<pyskip_hold_point> thresholds;
    for (const pyskip_profile_point & point : profile.curves[sublayer]) {
        thresholds.push_back({ point.rate, point.threshold });
    }
    return thresholds;
}

static void mix(pyskip_profile_point & point, const pyskip_profile_point & a, const pyskip_profile_point & b,
                float share) {
    for (const auto member :
         { &pyskip_profile_point::ppl_ratio, &pyskip_profile_point::ppl_ratio_se, &pyskip_profile_point::kld_mean,
           &pyskip_profile_point::ffn_bytes_saved, &pyskip_profile_point::ideal_speedup }) {
        point.*member = a.*member + share * (b.*member - a.*member);
    }
}

bool pyskip_profile_at(const pyskip_profile & profile, pyskip_sublayer sublayer, float rate,
                       pyskip_profile_point & point, std::string & error) {
    const std::vector<pyskip_profile_point> & curve = profile.curves[sublayer];
    if (curve.empty()) {
        error = "the profile has no gates of attention: leave attn out, or make one with pyskip calibrate --attention";
        return false;
    }
    const float last = curve.back().rate;
    if (!(rate >= 0.0f && rate <= last + BEYOND)) {
        char line[128];
        std::snprintf(line, sizeof(line), "%s %g is beyond the profile's curve, expected 0 to %.3g: ask for less",
                      sublayer == PYSKIP_SUBLAYER_FFN ? "rate" : "attn", rate,
                      std::floor((double) last * 1000.0) / 1000.0);
        error = line;
        return false;
    }
    pyskip_profile_point a{}; // dense
    a.ppl_ratio     = 1.0f;
    a.ppl_ratio_se  = curve.front().ppl_ratio_se;
    a.ideal_speedup = 1.0f;
    for (const pyskip_profile_point & b : curve) {
        if (rate <= b.rate || b.rate == last) {
            mix(point, a, b, b.rate > a.rate ? std::fmin((rate - a.rate) / (b.rate - a.rate), 1.0f) : 1.0f);
            break;
        }
        a = b;
    }
    point.rate      = rate;
    point.threshold = pyskip_hold_start(pyskip_profile_thresholds(profile, sublayer), rate);
    return true;
}
