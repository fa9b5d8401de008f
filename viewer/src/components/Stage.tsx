import type { Signal } from "@preact/signals";
import { useEffect, useRef, useState } from "preact/hooks";
import { drawHeat, drawOutlines, drawVeil, type Placement } from "../draw";
import { sample, type ScoreMap } from "../maps";
import type { Found } from "../regions";
import { scoreOf } from "../scale";
import type { Region } from "../types";

/** Zoom and center of a view, shared by the stages of one image. The center is a share of the image's sides. */
export interface View {
  zoom: number;
  x: number;
  y: number;
}

export const WHOLE: View = { zoom: 1, x: 0.5, y: 0.5 };
const MAX_ZOOM = 40;

export function zoomed(view: View, factor: number, x = view.x, y = view.y): View {
  const zoom = Math.min(MAX_ZOOM, Math.max(1, view.zoom * factor)), share = view.zoom / zoom;
  return clamped({ zoom, x: x + (view.x - x) * share, y: y + (view.y - y) * share });
}

function clamped(view: View): View {
  const half = 0.5 / view.zoom, clamp = (at: number): number => Math.min(1 - half, Math.max(half, at));
  return { zoom: view.zoom, x: clamp(view.x), y: clamp(view.y) };
}

interface StageProps {
  photo: string | null;
  map: ScoreMap | null;
  found: Found | null;
  regions: Region[];
  width: number;
  height: number;
  /** Opacity of the heat; negative = no regions either. */
  heat: number;
  marks: "boxes" | "contours" | "none";
  view: Signal<View>;
  label: string;
  onValue?: (score: number | null) => void;
}

/** One picture with heat and regions that is zoomed with the wheel, two fingers or keys, and dragged. */
export function Stage(props: StageProps) {
  const { photo, map, found, regions, heat, marks, view, label, onValue } = props;
  const box = useRef<HTMLDivElement>(null), canvas = useRef<HTMLCanvasElement>(null), [image, setImage] = useState<HTMLImageElement | null>(null);
  const [size, setSize] = useState<[number, number]>([0, 0]), fingers = useRef(new Map<number, [number, number]>());
  // a reference keeps its own proportions; a map has those of the image
  const width = map || !image ? props.width : image.naturalWidth, height = map || !image ? props.height : image.naturalHeight;
  const { zoom, x, y } = view.value, ratio = devicePixelRatio || 1;
  useEffect(() => {
    setImage(null);
    if (!photo) return;
    const loading = new Image();
    loading.onload = () => setImage(loading);
    loading.src = photo;
    return () => (loading.onload = null);
  }, [photo]);
  useEffect(() => {
    const element = box.current!;
    const measure = (): void => setSize([element.clientWidth, element.clientHeight]);
    const observer = new ResizeObserver(measure), wheel = (event: WheelEvent): void => {
      event.preventDefault();
      zoomAt(event.clientX, event.clientY, Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.0016)));
    };
    measure();
    observer.observe(element);
    element.addEventListener("wheel", wheel, { passive: false });
    return () => {
      observer.disconnect();
      element.removeEventListener("wheel", wheel);
    };
  }, [width, height]); // the handlers use both
  const place = (scale = 1): Placement => {
    const fit = Math.min(box.current!.clientWidth / width, box.current!.clientHeight / height) * view.value.zoom * scale;
    return {
      x: (box.current!.clientWidth * scale) / 2 - view.value.x * width * fit,
      y: (box.current!.clientHeight * scale) / 2 - view.value.y * height * fit,
      width: width * fit,
      height: height * fit,
    };
  };
  const shareAt = (clientX: number, clientY: number): [number, number] => {
    const corner = box.current!.getBoundingClientRect(), at = place();
    return [(clientX - corner.left - at.x) / at.width, (clientY - corner.top - at.y) / at.height];
  };
  const zoomAt = (clientX: number, clientY: number, factor: number): void => {
    const [sx, sy] = shareAt(clientX, clientY);
    view.value = zoomed(view.value, factor, sx, sy);
  };
  useEffect(() => {
    const element = canvas.current!;
    if (!size[0] || !size[1]) return;
    element.width = Math.round(size[0] * ratio);
    element.height = Math.round(size[1] * ratio);
    const context = element.getContext("2d")!, at = place(ratio);
    context.imageSmoothingQuality = "high";
    if (image) context.drawImage(image, at.x, at.y, at.width, at.height);
    if (map && heat >= 0) drawVeil(context, map, at);
    if (map && heat > 0) drawHeat(context, map, at, heat);
    if (map && found && heat >= 0 && marks === "contours") drawOutlines(context, map, found, at, ratio * 1.4);
    if (heat >= 0 && marks === "boxes") drawBoxes(context, regions, at, at.width / width, ratio);
  }, [image, map, found, regions, heat, marks, zoom, x, y, size[0], size[1]]);
  const move = (event: PointerEvent): void => {
    const before = fingers.current.get(event.pointerId);
    if (onValue && map) {
      const [sx, sy] = shareAt(event.clientX, event.clientY), inside = sx >= 0 && sx < 1 && sy >= 0 && sy < 1;
      onValue(inside ? scoreOf(sample(map, sx * map.width, sy * map.height)) : null);
    }
    if (!before) return;
    const others = [...fingers.current].filter(([id]) => id !== event.pointerId), at = place();
    if (others.length === 1) {
      const [, [ox, oy]] = others[0], far = Math.hypot(before[0] - ox, before[1] - oy) || 1;
      zoomAt((event.clientX + ox) / 2, (event.clientY + oy) / 2, Math.hypot(event.clientX - ox, event.clientY - oy) / far);
    } else if (!others.length) {
      const { zoom, x, y } = view.value;
      view.value = clamped({ zoom, x: x - (event.clientX - before[0]) / at.width, y: y - (event.clientY - before[1]) / at.height });
    }
    fingers.current.set(event.pointerId, [event.clientX, event.clientY]);
  };
  const up = (event: PointerEvent): void => void fingers.current.delete(event.pointerId);
  return (
    <div class={`viewport${zoom > 1 ? " zoomed" : ""}`} ref={box} role="img" aria-label={label}
      onPointerDown={(event) => { box.current!.setPointerCapture(event.pointerId); fingers.current.set(event.pointerId, [event.clientX, event.clientY]); }}
      onPointerMove={move} onPointerUp={up} onPointerCancel={up} onPointerLeave={() => onValue?.(null)}
      onDblClick={(event) => (zoom > 1 ? (view.value = WHOLE) : zoomAt(event.clientX, event.clientY, 4))}>
      <canvas ref={canvas} />
      {!photo && <p class="no-photo">No image is stored</p>}
    </div>
  );
}

export function drawBoxes(context: CanvasRenderingContext2D, regions: Region[], at: Placement, scale: number, ratio: number): void {
  context.font = `600 ${12 * ratio}px system-ui, sans-serif`;
  for (const [left, top, wide, tall, , peak] of [...regions].reverse()) {
    const box: [number, number, number, number] = [at.x + left * scale, at.y + top * scale, wide * scale, tall * scale];
    context.strokeStyle = "rgb(10 12 18 / 80%)";
    context.lineWidth = 4 * ratio;
    context.strokeRect(...box);
    context.strokeStyle = "#fff";
    context.lineWidth = 1.6 * ratio;
    context.strokeRect(...box);
    const text = peak.toFixed(2), pad = 4 * ratio, high = 18 * ratio, wideText = context.measureText(text).width + 2 * pad;
    const y = box[1] - high - 2 * ratio > 0 ? box[1] - high - 2 * ratio : box[1] + box[3] + 2 * ratio;
    context.fillStyle = "rgb(12 12 18 / 82%)";
    context.fillRect(box[0], y, wideText, high);
    context.fillStyle = "#fff";
    context.textBaseline = "middle";
    context.fillText(text, box[0] + pad, y + high / 2);
  }
}
