// Classify JPEGs by a bundle in OpenVINO, and print what `gft-edge predict` prints.

#include <cstdio>
#include <filesystem>
#include <iostream>
#include <nlohmann/json.hpp>
#include <openvino/openvino.hpp>

#include "preprocess.h"

namespace {

using Json = nlohmann::ordered_json;
namespace fs = std::filesystem;

constexpr int schema_version = 6;
constexpr auto usage =
    "classify BUNDLE FILE... [--top-k N] [--json] [--pixels]: the files are JPEGs, or with --pixels "
    "what the graph takes of one image, its bytes and nothing else";

struct Request {
    std::vector<std::string> words;  // the bundle, then the files
    std::size_t top_k = 5;
    bool as_json = false;
    bool as_pixels = false;
};

Request parsed(const std::vector<std::string>& arguments) {
    Request request;
    for (auto word = arguments.begin(); word != arguments.end(); ++word) {
        if (*word == "--json") {
            request.as_json = true;
        } else if (*word == "--pixels") {
            request.as_pixels = true;
        } else if (*word == "--top-k" && word + 1 != arguments.end()) {
            char* rest = nullptr;
            const long given = std::strtol((++word)->c_str(), &rest, 10);
            if (given < 1 || *rest) {
                throw std::runtime_error("--top-k is " + *word + ": give 1 or more");
            }
            request.top_k = static_cast<std::size_t>(given);
        } else if (word->rfind("--", 0) == 0) {
            throw std::runtime_error(*word + " is no option: " + usage);
        } else {
            request.words.push_back(*word);
        }
    }
    if (request.words.size() < 2) {
        throw std::runtime_error(std::string("give a bundle and one file or more: ") + usage);
    }
    return request;
}

// Whether this x86 adds products of 8-bit integers in 16 bits, as one without VNNI and AMX does.
bool saturates_int8() {
    std::ifstream cpuinfo("/proc/cpuinfo");
    for (std::string line; std::getline(cpuinfo, line);) {
        if (line.rfind("flags", 0) == 0) {
            const auto lacks = [&](const char* flag) { return line.find(flag) == std::string::npos; };
            return lacks("avx_vnni") && lacks("avx512_vnni") && lacks("amx_int8");
        }
    }
    return false;
}

// The manifest of a bundle that this program can run.
Json read_manifest(const std::string& bundle) {
    std::ifstream file(fs::path(bundle) / "manifest.json");
    if (!file) {
        throw std::runtime_error(bundle + " is no bundle: it has no manifest.json");
    }
    Json manifest = Json::parse(file);
    const int version = manifest.at("schema_version");
    if (version != schema_version) {
        throw std::runtime_error(bundle + " has schema version " + std::to_string(version) +
                                 ", this program reads " + std::to_string(schema_version));
    }
    if (manifest.at("target") == "tensorrt") {
        throw std::runtime_error(bundle + " is for tensorrt: export it with --target openvino or onnx");
    }
    if (manifest.at("input").at("dtype") != "uint8") {
        throw std::runtime_error(bundle + " takes normalised pixels: export it with --input uint8");
    }
    const Json& quantization = manifest.at("quantization");
    if (!quantization.is_null() && quantization.at("weights_range") == "full" && saturates_int8()) {
        throw std::runtime_error(bundle + " is INT8 with the whole range of its weights, and this CPU has "
                                          "no VNNI: export it with --weights-range half");
    }
    return manifest;
}

// A bundle's graph, compiled for the CPU in the precision that its manifest names.
class Engine {
  public:
    Engine(const std::string& bundle, const Json& manifest) : batch_(manifest.at("input").at("batch")) {
        const std::string precision = manifest.at("runtime_precision");
        const ov::element::Type type(precision == "typed" ? "f32" : precision);
        const fs::path graph = fs::path(bundle) / manifest.at("artifact").at("path").get<std::string>();
        request_ = ov::Core()
                       .compile_model(graph.string(), "CPU", ov::hint::inference_precision(type),
                                      ov::hint::performance_mode(ov::hint::PerformanceMode::LATENCY))
                       .create_infer_request();
    }

    // The logits of one image, which fills the static batch.
    std::vector<float> logits(const gft::Bytes& pixels) {
        ov::Tensor input = request_.get_input_tensor();
        if (input.get_byte_size() != batch_ * pixels.size()) {
            throw gft::ImageError(std::to_string(pixels.size()) + " bytes of pixels, expected " +
                                  std::to_string(input.get_byte_size() / batch_));
        }
        for (std::size_t i = 0; i < batch_; ++i) {
            std::copy(pixels.begin(), pixels.end(), input.data<std::uint8_t>() + i * pixels.size());
        }
        request_.infer();
        const ov::Tensor output = request_.get_tensor("logits");
        const float* first = output.data<const float>();
        return {first, first + output.get_size() / batch_};
    }

  private:
    std::size_t batch_;
    ov::InferRequest request_;
};

// The likeliest classes, best first, each with its probability: the softmax of logits / temperature. Where
// the largest is under the least probability that the bundle asks for, none has a label.
Json predictions(const std::vector<float>& logits, const Json& labels, const Json& confidence,
                 std::size_t top_k) {
    const double temperature = confidence.at("temperature");
    std::vector<double> shares;
    const double largest = *std::max_element(logits.begin(), logits.end());
    for (const double logit : logits) {
        shares.push_back(std::exp((logit - largest) / temperature));
    }
    const double total = std::accumulate(shares.begin(), shares.end(), 0.0);
    if (!std::isfinite(total)) {
        throw std::runtime_error("the logits hold NaN or infinity: run gft-edge verify on this bundle");
    }
    std::vector<std::size_t> order(logits.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return logits[a] > logits[b]; });
    order.resize(std::min(top_k, order.size()));
    const bool accepted = shares[order.front()] / total >= confidence.at("min_probability").get<double>();
    Json found = Json::array();
    for (const std::size_t i : order) {
        const Json label = accepted ? labels.at(i) : Json(nullptr);
        found.push_back({{"label", label}, {"index", i}, {"probability", shares[i] / total}});
    }
    return found;
}

void print(const Json& content, const Json& labels, bool as_json) {
    if (as_json) {
        std::cout << content.dump(-1, ' ', false, Json::error_handler_t::replace) << '\n';
    } else if (content.contains("error")) {
        std::cerr << "Error: " << content["error"].get<std::string>() << '\n';
    } else {
        std::printf("%s\n", content["path"].get<std::string>().c_str());
        for (const Json& one : content["predictions"]) {
            const std::string name = labels.at(one["index"].get<std::size_t>());
            const std::string said = one["label"].is_null() ? "none of these (" + name + ")" : name;
            std::printf("  %6.2f %%  %s\n", 100 * one["probability"].get<double>(), said.c_str());
        }
    }
}

// Classify every file; one that cannot be read is reported, and the exit code is then 1.
int classify(const Request& request) {
    const std::string& bundle = request.words.front();
    const Json manifest = read_manifest(bundle);
    const Json& model = manifest.at("model");
    const Json& given = model.at("preprocessing");
    const gft::Preprocessing spec{given.at("image_size_px"), given.at("crop_pct"), given.at("crop_mode"),
                                  given.at("interpolation")};
    const Json& labels = model.at("labels");
    const Json& confidence = manifest.at("confidence");
    Engine engine(bundle, manifest);
    int failed = 0;
    for (auto path = request.words.begin() + 1; path != request.words.end(); ++path) {
        try {
            const gft::Bytes file = gft::read_file(*path);
            const gft::Bytes pixels =
                request.as_pixels ? file : gft::resized_and_cropped(gft::decoded(file), spec);
            const Json found = predictions(engine.logits(pixels), labels, confidence, request.top_k);
            print({{"path", *path}, {"label", found[0]["label"]}, {"predictions", found}}, labels,
                  request.as_json);
        } catch (const gft::ImageError& error) {
            failed = 1;
            print({{"path", *path}, {"error", *path + ": " + error.what()}}, labels, request.as_json);
        }
    }
    return failed;
}

}  // namespace

int main(int count, char** words) {
    try {
        return classify(parsed({words + 1, words + count}));
    } catch (const Json::exception& error) {
        std::cerr << "Error: manifest.json is not as this program reads it: " << error.what()
                  << ": copy the bundle again\n";
    } catch (const std::exception& error) {
        // OpenVINO's messages have several lines, of which the last says what is wrong.
        std::string reason = error.what();
        reason.erase(reason.find_last_not_of('\n') + 1);
        std::cerr << "Error: " << reason.substr(reason.rfind('\n') + 1) << '\n';
    }
    return 2;
}
