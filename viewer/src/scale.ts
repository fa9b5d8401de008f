/** Scores, map values and colors. The palette is the same as of overlay files (`postprocess/heatmap.py`). */

/** Colors of scores 0 to 1, evenly spaced: mid-lightness, so that they show on dark and on white images. */
export const PALETTE: [number, number, number][] = [
  [30, 70, 190], [38, 96, 214], [46, 110, 232], [84, 92, 236], [140, 70, 226], [206, 34, 128],
  [226, 40, 84], [236, 62, 44], [244, 98, 24], [250, 138, 10], [255, 176, 0],
];
/** Score at which heat starts to show, and at which it is fully opaque. */
export const COOL = 0.25, WARM = 0.5;

/** Score of a map value: 0 at 0, 0.5 at 1, towards 1 above. */
export const scoreOf = (value: number): number => (value < 1 ? Math.max(0, value / 2) : 1 - 0.5 * Math.exp(1 - value));

/** Map value of a score: the inverse of `scoreOf`. */
export const valueOf = (score: number): number =>
  score < 0.5 ? 2 * score : 1 - Math.log(Math.max(2 * (1 - score), 1e-12));

export function colorOf(score: number): [number, number, number] {
  const at = Math.min(1, Math.max(0, score)) * (PALETTE.length - 1);
  const low = Math.min(PALETTE.length - 2, Math.floor(at));
  return [0, 1, 2].map((c) => Math.round(PALETTE[low][c] + (at - low) * (PALETTE[low + 1][c] - PALETTE[low][c]))) as [number, number, number];
}

const STEPS = 1024;
/** Map values of the table end here: the score is 0.9997. */
const TOP_VALUE = 8.5;
const table = new Uint32Array(STEPS + 1);
for (let i = 0; i <= STEPS; i++) {
  const score = scoreOf((i / STEPS) * TOP_VALUE);
  const [r, g, b] = colorOf(score);
  const alpha = Math.round(255 * Math.min(1, Math.max(0, (score - COOL) / (WARM - COOL))));
  table[i] = (alpha << 24) | (b << 16) | (g << 8) | r;
}

/** RGBA of a map value, as one little-endian number for canvas pixels. */
export const pixelOf = (value: number): number =>
  table[value <= 0 ? 0 : value >= TOP_VALUE ? STEPS : (value * (STEPS / TOP_VALUE)) | 0];

export const gradient = (direction: string): string =>
  `linear-gradient(${direction}, ${PALETTE.map((c) => `rgb(${c.join(" ")})`).join(", ")})`;
