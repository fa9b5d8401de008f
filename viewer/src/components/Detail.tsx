import { useSignal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import type { ViewerState } from "../state";
import { Findings } from "./Findings";
import { MODES, PictureView, type Mode } from "./PictureView";
import { WHOLE, zoomed, type View } from "./Stage";

/** One image in full: zoomable pictures, methods, regions, review. */
export function Detail({ state }: { state: ViewerState }) {
  const dialog = useRef<HTMLDialogElement>(null), index = state.open.value;
  const mode = useSignal<Mode>("side"), view = useSignal<View>(WHOLE);
  useEffect(() => {
    const element = dialog.current!;
    if (index === null) element.close();
    else if (!element.open) element.showModal();
    view.value = WHOLE;
  }, [index]);
  const step = (by: number): void => {
    const shown = state.visible.value, at = shown.indexOf(state.open.value ?? -1);
    const next = shown[at + by];
    if (next !== undefined) state.open.value = next;
  };
  const key = (event: KeyboardEvent): void => {
    if (index === null) return;
    const target = event.target as HTMLElement, typing = /^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName);
    if ((event.ctrlKey || event.metaKey) && event.key === "z" && !typing) return event.preventDefault(), state.undo();
    if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
    if (target.getAttribute("role") === "tab" && event.key.startsWith("Arrow")) return;
    const digit = Number(event.key);
    const actions: Record<string, () => void> = {
      ArrowLeft: () => step(-1), ArrowRight: () => step(1),
      "+": () => (view.value = zoomed(view.value, 1.5)), "=": () => (view.value = zoomed(view.value, 1.5)),
      "-": () => (view.value = zoomed(view.value, 1 / 1.5)), "0": () => (view.value = WHOLE),
      a: () => decide("accept"), r: () => decide("reject"), u: () => state.undo(),
      n: () => dialog.current!.querySelector<HTMLElement>("#note")!.focus(), t: () => dialog.current!.querySelector<HTMLElement>("#tags")!.focus(),
      ...Object.fromEntries(MODES.map(([name, , letter]) => [letter.toLowerCase(), () => (mode.value = name)])),
    };
    if (digit >= 1 && digit <= state.report.methods.length) state.method.value = digit - 1;
    else if (actions[event.key]) actions[event.key]();
    else return;
    event.preventDefault();
  };
  const decide = (decision: "accept" | "reject"): void => {
    const at = index!, next = state.visible.value[state.visible.value.indexOf(at) + 1];
    state.setReview(at, { decision });
    if (next !== undefined) state.open.value = next;
  };
  const shown = state.visible.value, at = index === null ? -1 : shown.indexOf(index);
  return (
    <dialog id="view" ref={dialog} aria-labelledby="view-name" onKeyDown={key} onClose={() => (state.open.value = null)}
      onClick={(event) => event.target === dialog.current && dialog.current!.close()}>
      {index !== null && <>
        <div class="top">
          <h2 id="view-name">{state.rows[index].name}</h2>
          <button type="button" class="icon" id="previous" aria-label="Previous image" disabled={at <= 0} onClick={() => step(-1)}>‹</button>
          <button type="button" class="icon" id="next" aria-label="Next image" disabled={at < 0 || at >= shown.length - 1} onClick={() => step(1)}>›</button>
          <button type="button" class="icon" id="close" aria-label="Close" onClick={() => (state.open.value = null)}>×</button>
        </div>
        <div class="detail">
          <PictureView state={state} index={index} mode={mode} view={view} />
          <Findings state={state} index={index} view={view} onDecide={decide} />
        </div>
      </>}
    </dialog>
  );
}
