import { count } from "../format";
import type { ViewerState } from "../state";

/** Tabs of equal size, one per method, each with its own counts. */
export function MethodTabs({ state }: { state: ViewerState }) {
  const { methods } = state.report;
  if (methods.length < 2) return null;
  const key = (event: KeyboardEvent): void => {
    const by = event.key === "ArrowRight" ? 1 : event.key === "ArrowLeft" ? -1 : 0;
    if (!by) return;
    state.method.value = (state.method.value + by + methods.length) % methods.length;
    const tabs = (event.currentTarget as HTMLElement).children;
    (tabs[state.method.value] as HTMLElement).focus();
  };
  return (
    <div class="method-tabs" role="tablist" aria-label="Method" onKeyDown={key}>
      {methods.map((method, i) => (
        <button type="button" role="tab" key={method.name} aria-selected={i === state.method.value}
          tabIndex={i === state.method.value ? 0 : -1} onClick={() => (state.method.value = i)}>
          <b>{method.name}</b>
          <span>{method.threshold === null ? "no threshold" : `${count(method.flagged, "image")} flagged`}</span>
        </button>
      ))}
    </div>
  );
}
