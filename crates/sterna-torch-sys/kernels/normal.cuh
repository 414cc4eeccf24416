// Normal numbers as a function of a stream and an index, the same bits on a GPU as on the host: cpp/random.cc includes this file too.
//
// Nothing here but sums, products, quotients and square roots in double precision, each rounded once as IEEE 754 says, and never
// contracted (--fmad=false, -ffp-contract=off): the functions of two mathematical libraries would differ in their last bits.
#pragma once

using Uint64 = unsigned long long;

// The output function of SplitMix64 (Steele, Lea and Flood 2014), a bijection that passes for random.
__device__ inline Uint64 mix(Uint64 value) {
  value += 0x9e3779b97f4a7c15ULL;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9ULL;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebULL;
  return value ^ (value >> 31);
}

// The double whose bits are these, and back.
__device__ inline double double_of(Uint64 bits) {
  double value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

__device__ inline Uint64 bits_of(double value) {
  Uint64 bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

// 2^52: a smaller whole number is the low bits of its sum with it, both ways, in any vector unit.
constexpr double kWhole = 4503599627370496.0;

// In (0, 1): 52 random bits, at the middle of their interval.
__device__ inline double uniform(Uint64 stream, Uint64 counter) {
  return double_of((mix(stream ^ mix(counter)) >> 12) | 0x3ff0000000000000ULL) - (1.0 - 0x1p-53);
}

// Of a normal number above 0, within 2 units in the last place: x = m 2^e with m in [sqrt(1/2), sqrt(2)), and
// log m = 2 artanh s with s = (m - 1) / (m + 1), |s| < 0.172, whose series ends where a term is below 2^-53 of the first.
__device__ inline double log_of(double x) {
  const Uint64 bits = bits_of(x);
  const double all = double_of((bits & 0x000fffffffffffffULL) | 0x3ff0000000000000ULL);
  const bool is_above = all > 1.4142135623730951;
  const double m = all * (is_above ? 0.5 : 1.0);
  const double below = double_of((bits >> 52) | bits_of(kWhole)) - (kWhole + 1023.0);
  const double exponent = below + (is_above ? 1.0 : 0.0);
  const double s = (m - 1.0) / (m + 1.0);
  const double z = s * s;
  double sum = 2.0 / 23.0;
  sum = sum * z + 2.0 / 21.0;
  sum = sum * z + 2.0 / 19.0;
  sum = sum * z + 2.0 / 17.0;
  sum = sum * z + 2.0 / 15.0;
  sum = sum * z + 2.0 / 13.0;
  sum = sum * z + 2.0 / 11.0;
  sum = sum * z + 2.0 / 9.0;
  sum = sum * z + 2.0 / 7.0;
  sum = sum * z + 2.0 / 5.0;
  sum = sum * z + 2.0 / 3.0;
  sum = sum * z + 2.0;
  return s * sum + exponent * 0.6931471805599453;
}

// cos(2 pi x) for x in (0, 1): the nearest quarter of a turn is taken off, which is exact, and the Taylor series of cosine or sine is
// summed for what is left, at most pi / 4.
__device__ inline double cos_of_turns(double x) {
  const double with_quarter = x * 4.0 + kWhole;
  const Uint64 quarter = bits_of(with_quarter);
  const double angle = (x - (with_quarter - kWhole) * 0.25) * 6.283185307179586;
  const double z = angle * angle;
  double cosine = 1.0 / 20922789888000.0;
  cosine = cosine * z - 1.0 / 87178291200.0;
  cosine = cosine * z + 1.0 / 479001600.0;
  cosine = cosine * z - 1.0 / 3628800.0;
  cosine = cosine * z + 1.0 / 40320.0;
  cosine = cosine * z - 1.0 / 720.0;
  cosine = cosine * z + 1.0 / 24.0;
  cosine = cosine * z - 0.5;
  cosine = cosine * z + 1.0;
  double sine = -1.0 / 1307674368000.0;
  sine = sine * z + 1.0 / 6227020800.0;
  sine = sine * z - 1.0 / 39916800.0;
  sine = sine * z + 1.0 / 362880.0;
  sine = sine * z - 1.0 / 5040.0;
  sine = sine * z + 1.0 / 120.0;
  sine = sine * z - 1.0 / 6.0;
  sine = sine * z + 1.0;
  const double of_odd = angle * sine;
  const double value = (quarter & 1) != 0 ? of_odd : cosine;
  // cos, -sin, -cos, sin.
  return double_of(bits_of(value) ^ (((quarter + 1) & 2) << 62));
}

// Normal number `index` of a stream, with mean 0 and standard deviation `std`: Box and Muller's transform of two uniform ones.
__device__ inline float normal(Uint64 stream, Uint64 index, double std) {
  const double radius = sqrt(-2.0 * log_of(uniform(stream, 2 * index)));
  return static_cast<float>(std * (radius * cos_of_turns(uniform(stream, 2 * index + 1))));
}
