import type { ScoreMap } from "./maps";
import type { Found } from "./regions";

/** x1, y1, x2, y2 of line pieces, in cells. */
export type Lines = Float32Array;

/** Corners of a cell square by the bits of its inside corners: pairs of edges that a line joins. */
const EDGES: number[][] = [
  [], [3, 0], [0, 1], [3, 1], [1, 2], [3, 0, 1, 2], [0, 2], [3, 2],
  [2, 3], [2, 0], [0, 1, 2, 3], [2, 1], [1, 3], [1, 0], [0, 3], [],
];

/** Outlines of the regions, by marching squares on the interpolated map. */
export function outlines(map: ScoreMap, found: Found): Lines {
  const lines: number[] = [];
  for (const region of found.kept) {
    const at = (x: number, y: number): number => {
      if (x < 0 || y < 0 || x >= map.width || y >= map.height) return -1;
      const i = y * map.width + x;
      // cells of other regions and below the cut are outside, whatever their value
      return found.labels[i] === region.label ? Math.max(0, map.values[i] - region.cut) : Math.min(-1e-3, map.values[i] - region.cut);
    };
    for (let y = region.top - 1; y < region.bottom; y++)
      for (let x = region.left - 1; x < region.right; x++) {
        const corners = [at(x, y), at(x + 1, y), at(x + 1, y + 1), at(x, y + 1)];
        const edges = EDGES[corners.reduce((bits, value, i) => bits | (value >= 0 ? 1 << i : 0), 0)];
        for (const edge of edges) {
          const a = corners[edge], b = corners[(edge + 1) % 4], share = a === b ? 0.5 : a / (a - b);
          const [fx, fy] = [[share, 0], [1, share], [1 - share, 1], [0, 1 - share]][edge];
          lines.push(x + 0.5 + fx, y + 0.5 + fy);
        }
      }
  }
  return Float32Array.from(lines);
}
