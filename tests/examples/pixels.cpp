// Write what preprocess.h makes of a JPEG: pixels JPEG OUT SIZE_PX CROP_PCT CROP_MODE INTERPOLATION.

#include "preprocess.h"

int main(int, char** words) {
    const gft::Preprocessing spec{std::stoi(words[3]), std::stod(words[4]), words[5], words[6]};
    const gft::Bytes pixels = gft::resized_and_cropped(gft::decoded(gft::read_file(words[1])), spec);
    std::ofstream out(words[2], std::ios::binary);
    std::copy(pixels.begin(), pixels.end(), std::ostreambuf_iterator<char>(out));
}
