import { unzlibSync } from "fflate";
import { pixelOf } from "./scale";
import type { EncodedMap } from "./types";

/** Dark and 60 % opaque, as one little-endian number for canvas pixels. */
const VEIL = 0x99100c0a;

export interface ScoreMap {
  width: number;
  height: number;
  /** Values on the scale of `scale.ts`: 1 is score 0.5. */
  values: Float32Array;
  /** 1 for cells in the region of interest; null if all is inspected. */
  inside: Uint8Array | null;
}

export function bytesOf(base64: string): Uint8Array {
  const text = atob(base64), bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

/** Scores of a report, ascending. */
export function decodeScores(base64: string): Float64Array {
  const bytes = bytesOf(base64), scores = new Float64Array(bytes.length >> 1);
  for (let i = 0; i < scores.length; i++) scores[i] = (bytes[2 * i] | (bytes[2 * i + 1] << 8)) / 65535;
  return scores.sort();
}

export function decodeMap(map: EncodedMap): ScoreMap {
  const raw = unzlibSync(bytesOf(map.data)), count = map.width * map.height, values = new Float32Array(count);
  const factor = map.top / (map.bytes === 1 ? 255 : 65535);
  for (let i = 0; i < count; i++)
    values[i] = factor * (map.bytes === 1 ? raw[i] : raw[2 * i] | (raw[2 * i + 1] << 8));
  return { width: map.width, height: map.height, values, inside: map.inside ? unzlibSync(bytesOf(map.inside)) : null };
}

/** Veil over the cells outside of the region of interest, one pixel per cell; null if all is inspected. */
export function veilOf(map: ScoreMap): ImageData | null {
  if (!map.inside) return null;
  const image = new ImageData(map.width, map.height), pixels = new Uint32Array(image.data.buffer);
  for (let i = 0; i < pixels.length; i++) pixels[i] = map.inside[i] ? 0 : VEIL;
  return image;
}

/** Value at a place in cells, by bilinear interpolation between cell centers. */
export function sample(map: ScoreMap, x: number, y: number): number {
  const { width, height, values } = map;
  const px = Math.min(width - 1, Math.max(0, x - 0.5)), py = Math.min(height - 1, Math.max(0, y - 0.5));
  const left = Math.floor(px), top = Math.floor(py), right = Math.min(width - 1, left + 1), bottom = Math.min(height - 1, top + 1);
  const fx = px - left, fy = py - top;
  const upper = values[top * width + left] * (1 - fx) + values[top * width + right] * fx;
  const lower = values[bottom * width + left] * (1 - fx) + values[bottom * width + right] * fx;
  return upper * (1 - fy) + lower * fy;
}

/**
 * Color part of a map into an image of `width` × `height` pixels. The part starts at (x, y) cells and a pixel covers
 * (dx, dy) cells. Values are interpolated before they are colored, so that edges stay sharp at every zoom.
 */
export function colorMap(map: ScoreMap, width: number, height: number, x: number, y: number, dx: number, dy: number): ImageData {
  const image = new ImageData(width, height), pixels = new Uint32Array(image.data.buffer), { values } = map;
  const left = new Int32Array(width), right = new Int32Array(width), share = new Float32Array(width);
  for (let i = 0; i < width; i++) {
    const at = Math.min(map.width - 1, Math.max(0, x + (i + 0.5) * dx - 0.5));
    left[i] = Math.floor(at);
    right[i] = Math.min(map.width - 1, left[i] + 1);
    share[i] = at - left[i];
  }
  for (let j = 0; j < height; j++) {
    const at = Math.min(map.height - 1, Math.max(0, y + (j + 0.5) * dy - 0.5));
    const top = Math.floor(at), fy = at - top, upper = top * map.width, lower = Math.min(map.height - 1, top + 1) * map.width;
    for (let i = 0; i < width; i++) {
      const fx = share[i];
      const a = values[upper + left[i]] * (1 - fx) + values[upper + right[i]] * fx;
      const b = values[lower + left[i]] * (1 - fx) + values[lower + right[i]] * fx;
      pixels[j * width + i] = pixelOf(a * (1 - fy) + b * fy);
    }
  }
  return image;
}
