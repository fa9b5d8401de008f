import type { MethodInfo } from "./api";

/** The method that fits what is given, and why; the same choice as of `clipspect detect`. */
export function recommend(images: number, good: number): { method: string; reason: string } {
  if (good >= 3) return { method: "dual-image", reason: "it compares with your known-good images, and they give a threshold" };
  if (good) return { method: "dual-image", reason: "it compares with your known-good images; from three on they also give a threshold" };
  if (images > 1) return { method: "dual-image", reason: "it compares your images with each other and with sentences" };
  return { method: "anoclip", reason: "one image is compared with sentences about good and damaged states" };
}

/** Why a method cannot run with what is given; null if it can. */
export function lacks(method: MethodInfo, images: number, good: number): string | null {
  if (method.needs_references && !good) return "needs a known-good image";
  if (method.looks_at_the_whole_set && images < 2 && !good) return "needs another image, or a known-good one";
  if (good && good < 3 && !method.accepts_references) return "uses no known-good images until there are three";
  return null;
}
