// Counters of skipping and of requests for Prometheus, beside upstream's.

#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

struct pyskip_skips;

class pyskip_metrics {
public:
    // A token was decoded under a policy other than off, and this was skipped.
    void add(const pyskip_skips & skips, int32_t n_layer);

    // A request was answered.
    void answered(const std::string & path, int status);

    std::string text() const;

private:
    mutable std::mutex                             mutex;
    int64_t                                        n_tokens = 0;
    std::vector<int64_t>                           skipped; // by layer: FFN blocks
    std::vector<int64_t>                           attention_skipped;
    std::map<std::pair<std::string, int>, int64_t> requests;
};

pyskip_metrics & pyskip_server_metrics();
