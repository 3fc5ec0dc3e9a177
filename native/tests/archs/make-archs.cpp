// Tiny seeded random models, one for each architecture of llama.cpp and for its experts: make-archs FOLDER [NAME]
//
// The Makefile calls it for tests/test_architectures.py. What keys an architecture needs is upstream's knowledge: this
// file includes tests/test-llama-archs.cpp of the pinned release, as the build unpacked it, and uses its descriptions
// and its saver. Each model is made by a process of its own, since a description that does not fit aborts.
//
// Prints a line a model: its name, a tab, "made" or why not.

#define main upstream_main
#include "test-llama-archs.cpp"
#undef main

#include <deque>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

static const uint32_t SEED      = 1;
static const uint32_t N_CTX     = 128; // windows of calibration are no longer
static const int      N_SECONDS = 30;  // for one model

// The first complaint says most: what follows only repeats that loading failed.
static std::string complaint;

static void keep_complaint(ggml_log_level level, const char * text, void *) {
    if (level == GGML_LOG_LEVEL_ERROR && complaint.empty()) {
        complaint = text;
    }
}

// Upstream's saver knows not every architecture; the keys that made the model and its tensors are a file as well.
struct file_writer {
    llm_arch                             arch;
    gguf_context_ptr                     gguf{ gguf_init_empty() };
    std::vector<std::unique_ptr<char[]>> data{};
};

// Values by the tensor's name, of such a size that each block changes the stream by about as much as the stream is:
// with upstream's own, of 0.1 everywhere, a norm's weights let next to nothing through. Embeddings are smaller: where they
// are the output's weights too, larger ones make one token certain, and no skip moves a logit.
static void fill_tensor(ggml_tensor * tensor) {
    const std::string name = tensor->name;
    uint32_t          seed = SEED;
    for (char c : name) {
        seed = (seed ^ (uint8_t) c) * 16777619u;
    }
    const auto  has       = [&](const char * part) { return name.find(part) != std::string::npos; };
    const bool  is_factor = (has("norm") && !has(".bias")) || has("scale");
    const bool  is_vector = tensor->ne[1] == 1;
    const float mean      = is_factor ? 1.0f : 0.0f;
    const float stdev = has("token_embd") ? 0.2f : is_vector || is_factor ? 0.1f : 1.0f / sqrtf((float) tensor->ne[0]);

    std::mt19937                    gen(seed);
    std::normal_distribution<float> dis(mean, stdev);
    std::vector<float>              values(ggml_nelements(tensor));
    for (float & value : values) {
        value = has("ssm_a") ? -fabsf(dis(gen)) : dis(gen); // the decay of a state is negative
    }
    std::vector<char> data(ggml_nbytes(tensor));
    GGML_ASSERT(tensor->type == GGML_TYPE_F32 || tensor->type == GGML_TYPE_F16);
    if (tensor->type == GGML_TYPE_F16) {
        ggml_fp32_to_fp16_row(values.data(), (ggml_fp16_t *) data.data(), (int64_t) values.size());
    } else {
        memcpy(data.data(), values.data(), data.size());
    }
    ggml_backend_tensor_set(tensor, data.data(), 0, data.size());
}

static void keep_tensor(ggml_tensor * tensor, void * userdata) {
    fill_tensor(tensor);

    file_writer & file = *(file_writer *) userdata;
    if (gguf_find_tensor(file.gguf.get(), tensor->name) >= 0) {
        return; // a tied one: the same name, the same values
    }
    if (file.arch == LLM_ARCH_RWKV6QWEN2 && strstr(tensor->name, "time_mix_first")) {
        return; // optional: with it the graph is RWKV6's
    }
    file.data.emplace_back(new char[ggml_nbytes(tensor)]);
    ggml_backend_tensor_get(tensor, file.data.back().get(), 0, ggml_nbytes(tensor));
    ggml_tensor copy = *tensor;
    copy.buffer      = nullptr;
    copy.data        = file.data.back().get();
    gguf_add_tensor(file.gguf.get(), &copy);
    gguf_set_tensor_data(file.gguf.get(), copy.name, copy.data);
}

// Keys that upstream's descriptions lack, for architectures that its own test leaves out, and a short context.
static void add_keys(const llm_arch arch, gguf_context * gguf) {
    llama_model_saver keys(arch, gguf);
    keys.add_kv(LLM_KV_CONTEXT_LENGTH, N_CTX);
    switch (arch) {
        case LLM_ARCH_GEMMA4:
            keys.add_kv(LLM_KV_ATTENTION_SLIDING_WINDOW_PATTERN, std::vector<uint32_t>{ 1, 1, 1, 1, 0 });
            break;
        case LLM_ARCH_PLM: keys.add_kv(LLM_KV_ROPE_DIMENSION_COUNT, uint32_t(64)); break;
        case LLM_ARCH_RWKV6QWEN2: keys.add_kv(LLM_KV_TOKEN_SHIFT_COUNT, uint32_t(1)); break;
        case LLM_ARCH_ARWKV7:
        case LLM_ARCH_RWKV7:
            for (const llm_kv rank :
                 { LLM_KV_ATTENTION_DECAY_LORA_RANK, LLM_KV_ATTENTION_ICLR_LORA_RANK,
                   LLM_KV_ATTENTION_VALUE_RESIDUAL_MIX_LORA_RANK, LLM_KV_ATTENTION_GATE_LORA_RANK }) {
                keys.add_kv(rank, uint32_t(16));
            }
            keys.add_kv(LLM_KV_TOKEN_SHIFT_COUNT, uint32_t(arch == LLM_ARCH_RWKV7 ? 2 : 1));
            break;
        case LLM_ARCH_GRANITE_SWITCH:
            keys.add_kv(LLM_KV_ADAPTER_COUNT, uint32_t(1));
            keys.add_kv(LLM_KV_ADAPTER_LORA_RANK, uint32_t(4));
            keys.add_kv(LLM_KV_ADAPTER_TOKEN_IDS_ACTIVATE, std::vector<uint32_t>{ 1 });
            keys.add_kv(LLM_KV_ADAPTER_TOKEN_IDS_SUBSTITUTE, std::vector<uint32_t>{ 2 });
            break;
        case LLM_ARCH_BERT:
        case LLM_ARCH_NOMIC_BERT:
        case LLM_ARCH_NOMIC_BERT_MOE:
        case LLM_ARCH_JINA_BERT_V2:
        case LLM_ARCH_JINA_BERT_V3: keys.add_kv(LLM_KV_TOKENIZER_TOKEN_TYPE_COUNT, uint32_t(2)); break;
        default: break;
    }
}

// Whether the architecture is to be made, with experts or without.
static bool is_made(const llm_arch arch, const bool moe) {
    const bool needs_experts = moe_mandatory(arch) || arch == LLM_ARCH_DEEPSEEK2OCR;
    return arch != LLM_ARCH_UNKNOWN && (moe ? needs_experts || moe_implemented(arch) : !needs_experts);
}

// In the child. Writes what went wrong to `report`.
static int make_model(const llm_arch arch, const bool moe, const std::string & path, FILE * report) {
    alarm(N_SECONDS);
    llama_log_set(keep_complaint, nullptr);

    const gguf_context_ptr keys = get_gguf_ctx(arch, moe);
    file_writer            file{ arch };
    add_keys(arch, keys.get());
    gguf_set_kv(file.gguf.get(), keys.get());
    const llama_model_ptr model(
        llama_model_init_from_user(keys.get(), keep_tensor, &file, llama_model_default_params()));
    if (model && gguf_write_to_file(file.gguf.get(), path.c_str(), /*only_meta =*/false)) {
        return 0;
    }
    fprintf(report, "%s", complaint.substr(0, complaint.find('\n')).c_str());
    return 1;
}

struct child {
    std::string name;
    FILE *      report;
    pid_t       pid;
};

static child start(const llm_arch arch, const bool moe, const std::string & name, const std::string & path) {
    child made = { name, tmpfile(), -1 };
    GGML_ASSERT(made.report != nullptr);
    made.pid = fork();
    GGML_ASSERT(made.pid >= 0);
    if (made.pid == 0) {
        const int status = make_model(arch, moe, path, made.report);
        fflush(made.report);
        _exit(status);
    }
    return made;
}

static void finish(const child & made) {
    int status = 0;
    waitpid(made.pid, &status, 0);
    char why[256] = {};
    rewind(made.report);
    const size_t n_why  = fread(why, 1, sizeof(why) - 1, made.report);
    const char * failed = n_why > 0 ? why : "fails";
    if (WIFSIGNALED(status)) {
        failed = WTERMSIG(status) == SIGALRM ? "takes too long" : "aborts";
    }
    fclose(made.report);
    printf("%s\t%s\n", made.name.c_str(), status == 0 ? "made" : failed);
    fflush(stdout);
}

int main(int argc, char ** argv) {
    if (argc < 2) {
        fprintf(stderr, "usage: make-archs FOLDER [NAME]\n");
        return 2;
    }
    const size_t      n_parallel = std::max(1u, std::thread::hardware_concurrency());
    std::deque<child> running;
    for (const llm_arch & arch : llm_arch_all()) {
        for (bool moe : { false, true }) {
            const std::string name = std::string(llm_arch_name(arch)) + (moe ? "+experts" : "");
            if (!is_made(arch, moe) || (argc > 2 && name != argv[2])) {
                continue;
            }
            if (running.size() == n_parallel) {
                finish(running.front());
                running.pop_front();
            }
            running.push_back(start(arch, moe, name, std::string(argv[1]) + "/" + name + ".gguf"));
        }
    }
    for (const child & made : running) {
        finish(made);
    }
    return 0;
}
