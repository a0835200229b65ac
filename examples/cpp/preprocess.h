// A JPEG file made into the pixels that a bundle's graph takes: gft_edge/runtime/preprocess.py in C++.
//
// Decoding is libjpeg-turbo's, as in Pillow, and the arithmetic of the resize is Pillow's own
// (src/libImaging/Resample.c), so that the pixels are the same bytes. Only crop_mode squash may be 3 grey
// levels off: Pillow resizes the height first where it shrinks by much more than the width, from 13 on.
#pragma once

#include <turbojpeg.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <fstream>
#include <iterator>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace gft {

using Bytes = std::vector<std::uint8_t>;

// Of one file: the others can still be classified.
struct ImageError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// RGB, row by row from the top.
struct Image {
    int width;
    int height;
    Bytes rgb;
};

// What the manifest says under model.preprocessing, but for mean and std, which the graph applies itself.
struct Preprocessing {
    int image_size_px;
    double crop_pct;
    std::string crop_mode;
    std::string interpolation;
};

// As many as gft-edge decodes: about 683 MiB.
constexpr std::int64_t max_pixels = 178'956'970;

inline Bytes read_file(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    // Peeking fails for a folder, which opens like a file.
    if (!file || file.peek() == std::ifstream::traits_type::eof()) {
        throw ImageError("it cannot be opened, or is empty");
    }
    return Bytes(std::istreambuf_iterator<char>(file), {});
}

// EXIF's orientation, 1 to 8; 1 where there is none. It stands in the first directory of the TIFF that
// an APP1 segment holds.
inline int orientation(const Bytes& jpeg) {
    constexpr std::array<std::uint8_t, 6> exif = {'E', 'x', 'i', 'f', 0, 0};
    for (std::size_t at = 2; at + 4 <= jpeg.size() && jpeg[at] == 0xFF && jpeg[at + 1] != 0xDA;) {
        const std::size_t length = jpeg[at + 2] * 256U + jpeg[at + 3];
        const std::size_t end = std::min(at + 2 + length, jpeg.size());
        const std::size_t tiff = at + 4 + exif.size();
        if (jpeg[at + 1] == 0xE1 && tiff + 8 <= end &&
            std::equal(exif.begin(), exif.end(), jpeg.data() + at + 4)) {
            const bool little = jpeg[tiff] == 'I';
            const auto number = [&](std::uint64_t from, std::uint64_t bytes) {
                std::uint64_t value = 0;
                for (std::uint64_t i = 0; i < bytes && from + bytes <= end; ++i) {
                    value = value * 256 + jpeg[little ? from + bytes - 1 - i : from + i];
                }
                return value;
            };
            const std::uint64_t directory = tiff + number(tiff + 4, 4);
            const std::uint64_t entries = number(directory, 2);
            for (std::uint64_t entry = directory + 2, i = 0; i < entries; entry += 12, ++i) {
                if (number(entry, 2) == 0x0112) {
                    const bool is_long = number(entry + 2, 2) == 4;
                    const std::uint64_t value = number(entry + 8, is_long ? 4 : 2);
                    return value >= 1 && value <= 8 ? static_cast<int>(value) : 1;
                }
            }
        }
        at += 2 + length;
    }
    return 1;
}

// Turn an image as EXIF's orientation asks for.
inline Image upright(Image image, int orientation) {
    if (orientation == 1) {
        return image;
    }
    const bool swapped = orientation >= 5;
    const bool from_right = orientation == 2 || orientation == 3 || orientation >= 7;
    const bool from_bottom = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
    Image turned{swapped ? image.height : image.width, swapped ? image.width : image.height, {}};
    turned.rgb.reserve(image.rgb.size());
    for (int y = 0; y < turned.height; ++y) {
        for (int x = 0; x < turned.width; ++x) {
            const int across = swapped ? y : x;
            const int down = swapped ? x : y;
            const std::int64_t column = from_right ? image.width - 1 - across : across;
            const std::int64_t row = from_bottom ? image.height - 1 - down : down;
            const auto pixel = image.rgb.begin() + 3 * (row * image.width + column);
            turned.rgb.insert(turned.rgb.end(), pixel, pixel + 3);
        }
    }
    return turned;
}

// Decode a JPEG into upright RGB. Throws ImageError for what is no JPEG, is cut short or damaged.
inline Image decoded(const Bytes& jpeg) {
    const std::unique_ptr<void, int (*)(void*)> decoder(tjInitDecompress(), tjDestroy);
    const auto size = static_cast<unsigned long>(jpeg.size());
    int width = 0, height = 0, subsampling = 0, colours = 0;
    const auto check = [&](int failed) {
        if (failed) {
            throw ImageError(std::string("cannot be decoded: ") + tjGetErrorStr2(decoder.get()));
        }
    };
    check(tjDecompressHeader3(decoder.get(), jpeg.data(), size, &width, &height, &subsampling, &colours));
    if (colours == TJCS_CMYK || colours == TJCS_YCCK) {
        throw ImageError("it is in CMYK: convert it to RGB");
    }
    if (std::int64_t{width} * height > max_pixels) {
        throw ImageError("it has more than 178,956,970 pixels: scale it down before classifying");
    }
    Image image{width, height, Bytes(std::size_t{3} * width * height)};
    check(tjDecompress2(decoder.get(), jpeg.data(), size, image.rgb.data(), width, 0, height, TJPF_RGB,
                        TJFLAG_ACCURATEDCT));
    return upright(std::move(image), orientation(jpeg));
}

// A filter of Pillow's: how far it reaches in pixels of the smaller image, and its weight at a distance.
struct Filter {
    double reach;
    double (*weight)(double);
};

inline double sinc(double x) {
    constexpr double pi = 3.14159265358979323846;
    return x == 0 ? 1 : std::sin(x * pi) / (x * pi);
}

inline Filter filter_named(const std::string& name) {
    if (name == "bilinear") {
        return {1, [](double x) { return std::max(1 - std::abs(x), 0.0); }};
    }
    if (name == "bicubic") {
        return {2, [](double x) {
                    x = std::abs(x);
                    return x < 1   ? (1.5 * x - 2.5) * x * x + 1
                           : x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5
                                   : 0;
                }};
    }
    if (name == "lanczos") {
        return {3, [](double x) { return x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0; }};
    }
    throw std::runtime_error("this program resizes by bilinear, bicubic or lanczos, not by " + name);
}

// The pixels of the larger image that one pixel is the weighted sum of, from `first` on.
struct Sum {
    int first;
    std::vector<int> weights;
};

constexpr int weight_bits = 22;

// How each of `target` pixels comes from `length` pixels; the filter widens where there are fewer.
inline std::vector<Sum> sums_of(int length, int target, Filter filter) {
    const double scale = static_cast<double>(length) / target;
    const double widened = std::max(scale, 1.0);
    const double reach = filter.reach * widened;
    std::vector<Sum> sums;
    for (int x = 0; x < target; ++x) {
        const double centre = (x + 0.5) * scale;
        const int first = std::max(static_cast<int>(centre - reach + 0.5), 0);
        const int last = std::min(static_cast<int>(centre + reach + 0.5), length);
        std::vector<double> shares;
        for (int from = first; from < last; ++from) {
            shares.push_back(filter.weight((from - centre + 0.5) * (1 / widened)));
        }
        const double total = std::accumulate(shares.begin(), shares.end(), 0.0);
        sums.push_back({first, {}});
        for (const double share : shares) {
            const double scaled = share / total * (1 << weight_bits);
            sums.back().weights.push_back(static_cast<int>(scaled + (scaled < 0 ? -0.5 : 0.5)));
        }
    }
    return sums;
}

// Resize the middle axis of uint8 (outer, length, inner) to `target`.
inline Bytes resized_axis(const Bytes& in, int outer, int length, int inner, int target, Filter filter) {
    if (length == target) {
        return in;
    }
    const std::vector<Sum> sums = sums_of(length, target, filter);
    Bytes out;
    out.reserve(std::size_t(outer) * target * inner);
    std::vector<int> totals(inner);
    for (int o = 0; o < outer; ++o) {
        for (const Sum& sum : sums) {
            std::fill(totals.begin(), totals.end(), 1 << (weight_bits - 1));
            const auto* pixel = &in[(std::size_t(o) * length + sum.first) * inner];
            for (const int weight : sum.weights) {
                for (int& total : totals) {
                    total += *pixel++ * weight;
                }
            }
            for (const int total : totals) {
                out.push_back(static_cast<std::uint8_t>(std::clamp(total >> weight_bits, 0, 255)));
            }
        }
    }
    return out;
}

// RGB image -> uint8 (S,S,3), S = image_size_px: what the graph takes of one image.
inline Bytes resized_and_cropped(const Image& image, const Preprocessing& spec) {
    const int size = spec.image_size_px;
    const std::int64_t scale = static_cast<int>(std::floor(size / spec.crop_pct));
    std::int64_t width = scale, height = scale;
    if (spec.crop_mode == "center" && image.width <= image.height) {
        height = scale * image.height / image.width;
    } else if (spec.crop_mode == "center") {
        width = scale * image.width / image.height;
    }
    if (width * height > max_pixels) {
        throw ImageError("its sides differ too much: crop it before classifying");
    }
    const Filter filter = filter_named(spec.interpolation);
    const int columns = static_cast<int>(width), rows = static_cast<int>(height);
    const Bytes narrow = resized_axis(image.rgb, image.height, image.width, 3, columns, filter);
    const Bytes whole = resized_axis(narrow, 1, image.height, 3 * columns, rows, filter);
    // Half to even, as Python rounds.
    const int left = static_cast<int>(std::nearbyint((columns - size) / 2.0));
    const int top = static_cast<int>(std::nearbyint((rows - size) / 2.0));
    Bytes cropped;
    for (int y = top; y < top + size; ++y) {
        const auto row = whole.begin() + 3 * (std::int64_t{y} * columns + left);
        cropped.insert(cropped.end(), row, row + 3 * size);
    }
    return cropped;
}

}  // namespace gft
