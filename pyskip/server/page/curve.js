// The skip slider: which rates it offers, and what a profile's curve says of them.

const STEP = 0.01; // between two stops

/** The last stop of the slider, 0 if there is no curve. */
export function lastStop(profile) {
  return profile && profile.curve.length ? Math.ceil(profile.curve.at(-1).rate / STEP - 1e-9) : 0;
}

/** The rate at a stop, 0 for off. The last stop is the curve's end to three places: the server takes 0.0005 more. */
export function rateAt(profile, stop) {
  const end = profile ? Math.floor(profile.curve.at(-1).rate * 1000 + 0.4) / 1000 : 0;
  return Math.min(Number((stop * STEP).toFixed(2)), end);
}

/** The stop nearest to a rate. */
export function stopOf(profile, rate) {
  return Math.min(Math.max(Math.round(rate / STEP), 0), lastStop(profile));
}

/** Where the slider stands for a model's own policy; null for a policy that it cannot express. */
export function stopOfSpec(profile, spec) {
  if (spec === "off") return 0;
  if (!profile) return null;
  if (spec === "profile") return stopOf(profile, profile.recommended);
  const rate = /^(?:profile:rate=)?(\d*\.?\d+)$/.exec(spec);
  return rate && Number(rate[1]) <= profile.curve.at(-1).rate + STEP ? stopOf(profile, Number(rate[1])) : null;
}

/** The curve at a rate, straight between its points and from dense: {pplRatio, idealSpeedup}. */
export function pointAt(profile, rate) {
  let before = { rate: 0, ppl_ratio: 1, ideal_speedup: 1 };
  for (const after of profile.curve) {
    if (rate <= after.rate) {
      const share = (rate - before.rate) / (after.rate - before.rate || 1);
      const between = (name) => before[name] + share * (after[name] - before[name]);
      return { pplRatio: between("ppl_ratio"), idealSpeedup: between("ideal_speedup") };
    }
    before = after;
  }
  return { pplRatio: before.ppl_ratio, idealSpeedup: before.ideal_speedup };
}
