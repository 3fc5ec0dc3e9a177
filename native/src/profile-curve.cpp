// The curve of a profile between its points.

#include "profile.h"

#include <cmath>
#include <cstdio>

static constexpr float BEYOND = 5e-4f; // of the last rate, which is known to 3 digits

std::vector<pyskip_hold_point> pyskip_profile_thresholds(const pyskip_profile & profile) {
    std::vector<pyskip_hold_point> thresholds;
    for (const pyskip_profile_point & point : profile.curve) {
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

bool pyskip_profile_at(const pyskip_profile & profile, float rate, pyskip_profile_point & point, std::string & error) {
    const float last = profile.curve.back().rate;
    if (!(rate >= 0.0f && rate <= last + BEYOND)) {
        char line[128];
        std::snprintf(line, sizeof(line), "rate %g is beyond the profile's curve, expected 0 to %.3g: ask for less",
                      rate, std::floor((double) last * 1000.0) / 1000.0);
        error = line;
        return false;
    }
    pyskip_profile_point a{}; // dense
    a.ppl_ratio     = 1.0f;
    a.ppl_ratio_se  = profile.curve.front().ppl_ratio_se;
    a.ideal_speedup = 1.0f;
    for (const pyskip_profile_point & b : profile.curve) {
        if (rate <= b.rate || b.rate == last) {
            mix(point, a, b, b.rate > a.rate ? std::fmin((rate - a.rate) / (b.rate - a.rate), 1.0f) : 1.0f);
            break;
        }
        a = b;
    }
    point.rate      = rate;
    point.threshold = pyskip_hold_start(pyskip_profile_thresholds(profile), rate);
    return true;
}
