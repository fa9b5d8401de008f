/** Data contract between Python (`clipspect.results.report`, `clipspect.server`) and the viewer: docs/results.md. */

export type VerdictName = "flagged" | "clean" | "stands_out" | "suspicious" | "undecided" | "error";

/** left, top, width, height, area (image pixels), peak (score). */
export type Region = [number, number, number, number, number, number];

/** What a report says about all images, apart from the rows. */
export interface Report {
  object: string;
  folder: string;
  /** Name of the results folder, for the command that makes a threshold permanent. */
  results: string;
  created: string;
  version: string;
  model: string;
  weights: string;
  total: number;
  failed: number;
  seconds: number;
  /** Rows at most; `total` counts all images. */
  cardLimit: number;
  /** [file, reason] of images that could not be scored; at most 200. */
  errors: [string, string][];
  warnings: string[];
  /** [name in words, value]. */
  settings: [string, string][];
  /** Verdict name to the word that people read. */
  words: Record<string, string>;
  methods: MethodSummary[];
  /** Where labels in `ImageRow.truth` come from, in words; null without labels. */
  truthSource: string | null;
}

/** What holds for all images under one method. */
export interface MethodSummary {
  name: string;
  /** Score from which on images are flagged; null if there is none. */
  threshold: number | null;
  thresholdSource: string | null;
  /** How the threshold was found, in words. */
  note: string;
  /** Whether known-good images support the threshold, so that images can be called clean. */
  good: boolean;
  verdicts: Record<string, number>;
  flagged: number;
  /** Scores of all images as base64 of little-endian uint16; 65535 is 1. */
  scores: string;
}

export interface ImageRow {
  name: string;
  object: string;
  width: number;
  height: number;
  seconds: number;
  /** Label, where there is ground truth. */
  truth: "good" | "defect" | null;
  /** One finding per method, in the order of `Report.methods`. */
  findings: Finding[];
}

export interface Finding {
  /** null if this method could not score the image. */
  score: number | null;
  verdict: VerdictName;
  regions: Region[];
  /** Address of the overlay file beside the report; null if there is no file. */
  overlay: string | null;
  /** Group of similar regions from 1; 0 = unlike all others; null = not compared. */
  similar: number | null;
}

/** Anomaly map on the scale where 0 is the level of good images and 1 is score 0.5. */
export interface EncodedMap {
  width: number;
  height: number;
  /** Value of the largest number. */
  top: number;
  /** Bytes of one number: 1 or 2 (little-endian). */
  bytes: 1 | 2;
  /** base64 of the zlib stream of the numbers, row by row. */
  data: string;
  /** Region of interest: base64 of the zlib stream of a byte per cell, 1 inside; null if all is inspected. */
  inside: string | null;
}

/** Pictures of one image. They are parsed when the image is shown. */
export interface Pictures {
  /** Small photo, as an address that `<img>` accepts. */
  photo: string | null;
  /** Larger photo, where there is one. */
  large: string | null;
  /** Template of this image, or the known-good images it was compared with; may be empty. */
  references: string[];
  /** One map per method; null if there is none. */
  maps: (EncodedMap | null)[];
}

/** Where the viewer gets its data: embedded in a report, or from the service. */
export interface Source {
  report: Report;
  rows: ImageRow[];
  pictures(index: number): Pictures;
  /** Free what the browser holds for the pictures. */
  release?(): void;
}

/** A person's decision on one image. */
export interface Review {
  decision: "accept" | "reject" | null;
  note: string;
  tags: string[];
}
